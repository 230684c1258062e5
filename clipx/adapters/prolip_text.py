"""ProLIP on the other side: train only the projection of the text tower, kept near where it was."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import check_fitted, check_number, check_queries, checked, shots_per_class
from clipx.adapters.prolip import distance, penalty_of, project, shots_of
from clipx.adapters.protocol import copy, learnt
from clipx.adapters.training import minimise, parameter
from clipx.adapters.views import Turns, first_of_groups
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.errors import ClipxError
from clipx.features.projection import text_projection, texts_before_projection
from clipx.models.clip import CLIP


def class_rows(prompts: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The zero-shot classifier ``[C, D]`` of a text projection, unit rows.

    Prompts are normalised before they are averaged, as zero-shot has it, so that untrained it is zero-shot;
    the code of the paper averages them as they are.

    Args:
        prompts: ``[C, T, Do]``, each class's prompts before the projection.
        weight: ``[Do, D]``.
        bias: ``[D]`` or None.
    """
    return functional.normalize(project(prompts, weight, bias).mean(1), dim=-1)


class ProLIPText:
    """The projection of the text tower, fine-tuned on cached prompts before it, with a penalty on moving.

    The image side stays as it is.

    Args:
        lam: weight of the penalty, see ``prolip.penalty_of``.
        lr: Adam's, on a cosine to 0; above 0.
        steps: full-batch, 0 or more; each sees the next view of every image; 0 is zero-shot.
        eps: Adam's, see ``ProLIP``.

    Raises:
        ClipxError: a number out of range.

    Source: Fahes et al. 2024, "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", the text variant.
    """

    needs = "text_tower"

    projection_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    lam_: float
    moved_: float

    _clip: CLIP | None = None

    def __init__(
        self, lam: str | float = "1/K", lr: float = 1e-4, steps: int = 300, eps: float = 1e-4
    ) -> None:
        penalty_of(lam, 1)
        check_number("lr", lr, open_below=True)
        check_number("steps", steps)
        check_number("eps", eps, open_below=True)
        self.lam, self.lr, self.steps, self.eps = lam, lr, steps, eps

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        clip: CLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Train a copy of the projection; the model stays as it is.

        Args:
            features, labels, text_classifier, logit_scale, groups: see ``protocol.Adapter``; of the
                classifier only the number of classes is used.
            clip: whose features they are.
            class_names: C of them.
            templates: prompts with one ``{}``.
            validation: nothing is chosen on it.

        Raises:
            ClipxError: see ``checks.checked``; a text tower without a projection.
        """
        if len(class_names) != len(text_classifier):
            raise ClipxError(f"there are {len(class_names)} class names for {len(text_classifier)} classes")
        support = checked(
            features.to(clip.device),
            labels,
            text_classifier,
            logit_scale=logit_scale,
            validation=validation,
            groups=groups,
        )
        shots_per_class(support, missing="warn")
        weight, bias = (None if part is None else part.to(support.features) for part in text_projection(clip))
        assert weight is not None
        prompts = _prompts(clip, class_names, templates).to(support.features)
        truth, turns = first_of_groups(support.labels, support.groups), Turns(support.groups)
        trained, scale = parameter(weight), float(logit_scale)
        self.lam_ = penalty_of(self.lam, shots_of(support))

        def losses(step: int) -> Tensor:
            rows = support.features[turns(step + 1)]
            logits = zero_shot_logits(rows, class_rows(prompts, trained, bias), scale)
            return functional.cross_entropy(logits, truth) + self.lam_ * distance(trained, weight)

        minimise(losses, torch.optim.Adam([trained], lr=self.lr, eps=self.eps, fused=True), self.steps)
        self.projection_, self.logit_scale_ = trained.detach(), scale
        if bias is not None:
            self.projection_bias_ = bias.clone()
        self.moved_ = float(distance(self.projection_, weight))
        self.text_classifier_ = class_rows(prompts, self.projection_, bias)
        self.attach(clip)
        return self

    def attach(self, clip: CLIP) -> None:
        """Take the model that it was fitted with, which ``for_classes`` runs."""
        self._clip = clip

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        return zero_shot_logits(features, self.text_classifier_, self.logit_scale_)

    def for_classes(
        self,
        text_classifier: Tensor,
        *,
        class_names: Sequence[str],
        templates: Sequence[str],
        clip: CLIP | None = None,
    ) -> "ProLIPText":
        """The trained projection of other classes' prompts.

        Args:
            text_classifier: ``[C', D]``; the projected prompts take its place.
            class_names: C' of them.
            templates: prompts with one ``{}``.
            clip: the model that it was fitted with; None for the one attached.

        Raises:
            ClipxError: not fitted, or no model.
        """
        check_fitted(self)
        clip = clip or self._clip
        if clip is None:
            raise ClipxError("this ProLIPText has no model", hint="call attach(clip) first")
        if len(class_names) != len(text_classifier) or not len(class_names):
            raise ClipxError(f"there are {len(class_names)} class names for {len(text_classifier)} classes")
        other: ProLIPText = copy(self)
        vars(other).update(learnt(self))
        prompts = _prompts(clip, class_names, templates).to(self.projection_)
        other.text_classifier_ = class_rows(
            prompts, self.projection_, getattr(self, "projection_bias_", None)
        )
        other.attach(clip)
        return other


def _prompts(clip: CLIP, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Every class's prompts before the projection, ``[C, T, Do]``."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    return texts_before_projection(clip, texts).unflatten(0, (len(class_names), len(templates)))
