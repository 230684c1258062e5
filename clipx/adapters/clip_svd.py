"""CLIP-SVD: the singular values of both towers' weights, trained on the shots themselves."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipx.adapters.checks import check_number
from clipx.adapters.tower_training import adapted, adapted_logits, check_settings, fit_towers, over_classes
from clipx.data.shots import ShotImages
from clipx.errors import ClipxError
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.surgery.svd import SingularValues, train_singular_values


class CLIPSVD:
    """Singular values of the attention and MLP weights of every block of both towers; their vectors stay.

    In a ResNet, whose only attention is its pool, the paper's targets leave the convolutions alone; the
    target ``conv`` goes beyond it.

    Args:
        share: of the singular values of each weight that are trained, the largest, in (0, 1]. Others stay as
            they are, where the published code drops them and with them a part of the weight.
        towers, targets, blocks, steps_per_shot, epochs, shorten, lr, weight_decay, batch_size, template,
            precision, seed: as ``LoRA``.
        parity_cyclic_lr: let the learning rate swing with a period of ``2 * epochs`` steps, which is what the
            published base-to-new code does by counting epochs where it steps; False decays it once.

    Raises:
        ClipxError: a number out of range, an unknown word, ``parity_cyclic_lr`` without ``epochs``.

    Source: Koleilat et al. 2025, "Singular Value Few-shot Adaptation of Vision-Language Models".
    """

    needs = "images"

    weights_: dict[str, Tensor]
    text_classifier_: Tensor
    logit_scale_: float
    template_: str
    steps_: int
    moved_: float
    negative_: int

    def __init__(
        self,
        share: float = 1.0,
        towers: Sequence[str] = ("image", "text"),
        targets: Sequence[str] = ("q", "k", "v", "o", "mlp"),
        blocks: str | Sequence[int] = "all",
        steps_per_shot: int = 200,
        epochs: int | None = None,
        shorten: int = 1,
        lr: float = 5e-4,
        weight_decay: float = 1e-2,
        batch_size: int = 32,
        template: str | None = None,
        precision: str = "auto",
        parity_cyclic_lr: bool = False,
        seed: int = 0,
    ) -> None:
        check_number("share", share, most=1.0, open_below=True)
        if parity_cyclic_lr and not epochs:
            raise ClipxError("parity_cyclic_lr needs epochs, of which it makes its period", hint="epochs=10")
        self.share, self.towers, self.targets, self.blocks = share, towers, targets, blocks
        self.steps_per_shot, self.epochs, self.shorten = steps_per_shot, epochs, shorten
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.template, self.precision, self.seed = template, precision, seed
        self.parity_cyclic_lr = parity_cyclic_lr
        check_settings(self)

    def _change(self, clip: CLIP) -> Mapping[str, SingularValues]:
        return train_singular_values(
            clip, share=self.share, towers=self.towers, targets=self.targets, blocks=self.blocks
        )

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        clip: CLIP | None = None,
        images: ShotImages | None = None,
        class_names: Sequence[str] = (),
        templates: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Self:
        """Train the singular values of a copy of the model; nothing is chosen on validation.

        Besides what is needed to put them back it keeps ``moved_``, how far they went relative to where they
        began, and ``negative_``, how many went below zero.

        Args:
            features, labels, text_classifier, logit_scale, validation: see ``protocol.Adapter``.
            clip, images, class_names, templates, progress: as ``LoRA.fit``.

        Raises:
            ClipxError: see ``tower_training.fit_towers``.
        """
        changes: dict[str, SingularValues] = {}

        def change(own: CLIP) -> Mapping[str, nn.Module]:
            changes.update(self._change(own))
            return changes

        state = fit_towers(
            self,
            change,
            features,
            labels,
            text_classifier,
            logit_scale=logit_scale,
            validation=validation,
            clip=clip,
            images=images,
            class_names=class_names,
            templates=templates,
            progress=progress,
            cyclic=self.parity_cyclic_lr,
        )
        vars(self).update(state)
        before = torch.cat([each.start for each in changes.values()])
        after = torch.cat([each.values.detach() for each in changes.values()])
        self.moved_ = float((after - before).norm() / before.norm())
        self.negative_ = int((after < 0).sum())
        if self.negative_:
            warnings.warn(f"{self.negative_} of {len(after)} singular values went below zero", stacklevel=2)
        return self

    def adapted(self, clip: CLIP) -> CLIP:
        """A copy of the model with the singular values put into plain weights."""
        return adapted(self, self._change, clip)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]`` of the adapted image tower."""
        return adapted_logits(self, features)

    def for_classes(
        self,
        text_classifier: Tensor,
        clip: CLIP | None = None,
        class_names: Sequence[str] = (),
        templates: Sequence[str] = (),
    ) -> Any:
        """The adapted towers before other classes, see ``tower_training.over_classes``."""
        return over_classes(self, text_classifier, clip, class_names, templates)
