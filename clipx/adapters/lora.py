"""CLIP-LoRA: changes of low rank to the attention of both towers, trained on the shots themselves."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from clipx.adapters.checks import check_choice, check_number
from clipx.adapters.tower_training import adapted, adapted_logits, check_settings, fit_towers, over_classes
from clipx.data.shots import ShotImages
from clipx.errors import ClipxError
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.surgery.lora import SCALINGS, add_lora


class LoRA:
    """Low-rank changes to the query, key and value maps of every block of both towers.

    They begin as nothing, so that the first step is taken from zero-shot, and are merged into plain weights
    in the end. In a ResNet, whose only attention is its pool, the paper's targets leave the convolutions
    alone; the target ``conv`` goes beyond it.

    Args:
        rank: of each change, 1 or more.
        alpha: factor of each change, above 0, divided as ``scaling`` says.
        dropout: share of the input that a change does not see in training, in [0, 1).
        scaling: ``rsqrt``, alpha over the root of the rank, as published; ``linear``, over the rank.
        towers: ``image``, ``text`` or both.
        targets: among ``q``, ``k``, ``v``, ``o``, ``mlp`` and ``conv``.
        blocks: ``all``, ``bottom``, ``mid``, ``up``, ``half-bottom``, ``half-up``, ``top1`` to ``top3``, or
            numbers from 0.
        steps_per_shot: optimizer steps for each image that a class has.
        epochs: passes through the images instead; None for steps.
        shorten: takes one of so many steps, each so many times as long, for where the published budget is
            too much: AdamW goes about as far as its learning rates add up to. 1 or more; 1 is as published.
        lr: AdamW's, on a cosine over all steps to 1e-6; above 0.
        weight_decay: 0 or more.
        batch_size: images a step.
        template: the prompt of a class, with one ``{}``; None for the first of the data's.
        precision: of the towers in training: ``fp32``, ``bf16``, ``fp16``, or ``auto``: fp16 on CUDA, as
            published, else fp32. The changes are always float32.
        seed: of their initial values and the dropout.

    Raises:
        ClipxError: a number out of range, an unknown word.

    Source: Zanella and Ben Ayed 2024, "Low-Rank Few-Shot Adaptation of Vision-Language Models".
    """

    needs = "images"

    weights_: dict[str, Tensor]
    text_classifier_: Tensor
    logit_scale_: float
    template_: str
    steps_: int

    def __init__(
        self,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        scaling: str = "rsqrt",
        towers: Sequence[str] = ("image", "text"),
        targets: Sequence[str] = ("q", "k", "v"),
        blocks: str | Sequence[int] = "all",
        steps_per_shot: int = 500,
        epochs: int | None = None,
        shorten: int = 1,
        lr: float = 2e-4,
        weight_decay: float = 1e-2,
        batch_size: int = 32,
        template: str | None = None,
        precision: str = "auto",
        seed: int = 0,
    ) -> None:
        check_number("rank", rank, least=1)
        check_number("alpha", alpha, open_below=True)
        if not 0 <= dropout < 1:
            raise ClipxError(f"dropout is {dropout}, must be 0 or more and below 1")
        check_choice("scaling", scaling, SCALINGS)
        self.rank, self.alpha, self.dropout, self.scaling = rank, alpha, dropout, scaling
        self.towers, self.targets, self.blocks = towers, targets, blocks
        self.steps_per_shot, self.epochs, self.shorten = steps_per_shot, epochs, shorten
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.template, self.precision, self.seed = template, precision, seed
        check_settings(self)

    def _change(self, clip: CLIP) -> Mapping[str, nn.Module]:
        return add_lora(
            clip,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            scaling=self.scaling,
            towers=self.towers,
            targets=self.targets,
            blocks=self.blocks,
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
        """Train the changes in a copy of the model; nothing is chosen on validation.

        Args:
            features, labels, text_classifier, logit_scale, validation: see ``protocol.Adapter``.
            clip: the model, which stays as it is.
            images: the shots, with the labels that ``labels`` counts in.
            class_names: one a class.
            templates: prompts; the first is used, unless the adapter has its own.
            progress: told ``("step", done, total)``.

        Raises:
            ClipxError: see ``tower_training.fit_towers``.
        """
        state = fit_towers(
            self,
            self._change,
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
        )
        vars(self).update(state)
        return self

    def adapted(self, clip: CLIP) -> CLIP:
        """A copy of the model with the changes merged into plain weights."""
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
