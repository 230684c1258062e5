"""ProLIP together with another adapter: Tip-Adapter-F's cache, or TaskRes's residual of the texts."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import Support, check_fitted, check_number, check_queries, shots_per_class
from clipx.adapters.prolip import ProLIP, checked_before, distance, penalty_of, project, shots_of
from clipx.adapters.tip_adapter import cache_logits
from clipx.adapters.training import Task, minimise, parameter
from clipx.adapters.views import Turns, first_of_groups
from clipx.adapters.zero_shot import zero_shot_logits


def train_beside(
    support: Support,
    start: Tensor,
    bias: Tensor | None,
    beside: Tensor,
    answer: Callable[[Tensor, Tensor], Tensor],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    scale: float,
    lam: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """A projection ``[Do, D]`` and the parameter of what is added to its logits, trained together.

    Only the projection is held near its start. Each step sees one view of every image, the second first.

    Args:
        support: rows before the projection.
        start: ``[Do, D]``.
        bias: ``[D]`` or None; it stays as it is.
        beside: the other parameter at the start.
        answer: logits ``[B, C]`` to be added, of unit rows ``[B, D]`` of the projection at its start and of
            the other parameter.
        optimizer: made of both parameters.
        scale: of the logits of the projection.
        lam: weight of the penalty.
        steps: full-batch, 0 or more; the learning rate falls to 0 on a cosine.
    """
    truth, turns = first_of_groups(support.labels, support.groups), Turns(support.groups)
    frozen = project(support.features, start, bias)
    weight, other = parameter(start), parameter(beside)

    def losses(step: int) -> Tensor:
        rows = turns(step + 1)
        mapped = project(support.features[rows], weight, bias)
        logits = zero_shot_logits(mapped, support.text_classifier, scale) + answer(frozen[rows], other)
        return functional.cross_entropy(logits, truth) + lam * distance(weight, start)

    minimise(losses, optimizer([weight, other]), steps)
    return weight.detach(), other.detach()


class ProLIPTip:
    """ProLIP plus Tip-Adapter-F: ``s f.t + alpha exp(-beta (1 - f0.k)) V``, projection and keys trained.

    The cache is asked by f0, the feature of the projection as it was, and its keys start at the shots' f0,
    the views of an image averaged before they are normalised.

    Args:
        lam: weight of the penalty on the projection, see ``prolip.penalty_of``.
        alpha: weight of the cache, 0 or more.
        beta: sharpness of its kernel, 0 or more.
        lr: AdamW's of both, on a cosine to 0; above 0.
        weight_decay: AdamW's, 0 or more.
        steps: full-batch, 0 or more; 0 is Tip-Adapter.
        eps: AdamW's, see ``ProLIP``.

    Raises:
        ClipxError: a number out of range.

    Source: Fahes et al. 2024, "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", the combination
        with Tip-Adapter-F.
    """

    needs = "pre_projection"

    projection_: Tensor
    start_: Tensor
    keys_: Tensor
    values_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    moved_: float

    def __init__(
        self,
        lam: str | float = "1/K",
        alpha: float = 1.0,
        beta: float = 1.0,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        steps: int = 300,
        eps: float = 1e-4,
    ) -> None:
        check_number("alpha", alpha)
        check_number("beta", beta)
        check_number("weight_decay", weight_decay)
        _check(lam, lr, steps, eps)
        self.lam, self.alpha, self.beta = lam, alpha, beta
        self.lr, self.weight_decay, self.steps, self.eps = lr, weight_decay, steps, eps

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        projection: tuple[Tensor, Tensor | None] | None = None,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Train a copy of the projection and the keys; nothing is chosen on validation.

        Args:
            features, labels, text_classifier, logit_scale, projection, groups: see ``ProLIP.fit``.
            validation: not used.

        Raises:
            ClipxError: see ``prolip.checked_before``.
        """
        support, start, bias = checked_before(
            Task(features, labels, text_classifier, logit_scale, validation, groups, projection=projection)
        )
        shots_per_class(support, missing="warn")
        truth = first_of_groups(support.labels, support.groups)
        values = functional.one_hot(truth, support.classes).to(start)
        sums = start.new_zeros(len(truth), len(start)).index_add(0, support.groups, support.features)
        keys = project(sums / support.groups.bincount()[:, None], start, bias)
        scale = float(logit_scale)
        self.projection_, self.keys_ = train_beside(
            support,
            start,
            bias,
            keys,
            lambda rows, moved: self.alpha * cache_logits(rows, moved, values, self.beta),
            lambda both: torch.optim.AdamW(
                both, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
            ),
            scale=scale,
            lam=penalty_of(self.lam, shots_of(support)),
            steps=self.steps,
        )
        self.values_ = values
        _keep(self, support, start, bias, scale)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of features before the projection ``[M, Do]``."""
        adapted, frozen = _both(self, features)
        cached = cache_logits(frozen, self.keys_, self.values_, self.beta)
        return zero_shot_logits(adapted, self.text_classifier_, self.logit_scale_) + self.alpha * cached

    def for_classes(self, text_classifier: Tensor) -> ProLIP:
        """The trained projection alone before other classes ``[C', D]``: the cache holds nothing of them."""
        return _projection_alone(self, text_classifier)


class ProLIPTaskRes:
    """ProLIP plus TaskRes: ``s f.t + s residual f0.R``, the projection and a residual R of the texts trained.

    Args:
        lam: weight of the penalty on the projection, see ``prolip.penalty_of``; R has none.
        residual: weight of R, which starts at 0; 0 or more.
        lr: Adam's of both, on a cosine to 0; above 0.
        steps: full-batch, 0 or more; 0 is zero-shot.
        eps: Adam's, see ``ProLIP``.

    Raises:
        ClipxError: a number out of range.

    Source: Fahes et al. 2024, "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", the combination
        with TaskRes (Yu et al. 2023).
    """

    needs = "pre_projection"

    projection_: Tensor
    start_: Tensor
    residual_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    moved_: float

    def __init__(
        self,
        lam: str | float = "1/K",
        residual: float = 0.1,
        lr: float = 1e-4,
        steps: int = 300,
        eps: float = 1e-4,
    ) -> None:
        check_number("residual", residual)
        _check(lam, lr, steps, eps)
        self.lam, self.residual, self.lr, self.steps, self.eps = lam, residual, lr, steps, eps

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        projection: tuple[Tensor, Tensor | None] | None = None,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Train a copy of the projection and the residual; nothing is chosen on validation.

        Args:
            features, labels, text_classifier, logit_scale, projection, groups: see ``ProLIP.fit``.
            validation: not used.

        Raises:
            ClipxError: see ``prolip.checked_before``.
        """
        support, start, bias = checked_before(
            Task(features, labels, text_classifier, logit_scale, validation, groups, projection=projection)
        )
        shots_per_class(support, missing="warn")
        scale = float(logit_scale)
        self.projection_, self.residual_ = train_beside(
            support,
            start,
            bias,
            torch.zeros_like(support.text_classifier),
            lambda rows, moved: zero_shot_logits(rows, moved, scale * self.residual),
            lambda both: torch.optim.Adam(both, lr=self.lr, eps=self.eps, fused=True),
            scale=scale,
            lam=penalty_of(self.lam, shots_of(support)),
            steps=self.steps,
        )
        _keep(self, support, start, bias, scale)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of features before the projection ``[M, Do]``."""
        adapted, frozen = _both(self, features)
        moved = zero_shot_logits(frozen, self.residual_, self.logit_scale_ * self.residual)
        return zero_shot_logits(adapted, self.text_classifier_, self.logit_scale_) + moved

    def for_classes(self, text_classifier: Tensor) -> ProLIP:
        """The trained projection alone before other classes ``[C', D]``: R has no row for them."""
        return _projection_alone(self, text_classifier)


def _check(lam: str | float, lr: float, steps: int, eps: float) -> None:
    penalty_of(lam, 1)
    check_number("lr", lr, open_below=True)
    check_number("steps", steps)
    check_number("eps", eps, open_below=True)


def _keep(adapter: Any, support: Support, start: Tensor, bias: Tensor | None, scale: float) -> None:
    adapter.start_, adapter.text_classifier_ = start.clone(), support.text_classifier
    adapter.logit_scale_, adapter.moved_ = scale, float(distance(adapter.projection_, start))
    if bias is not None:
        adapter.projection_bias_ = bias.clone()


def _both(adapter: Any, features: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows ``[M, D]`` of the trained projection, and of the one it started from."""
    check_fitted(adapter)
    rows = check_queries(features, adapter.text_classifier_, unit=False, width=len(adapter.start_))
    bias = getattr(adapter, "projection_bias_", None)
    return project(rows, adapter.projection_, bias), project(rows, adapter.start_, bias)


def _projection_alone(adapter: Any, text_classifier: Tensor) -> ProLIP:
    check_fitted(adapter)
    alone = ProLIP(lam=adapter.lam, lr=adapter.lr, steps=adapter.steps, eps=adapter.eps)
    alone.projection_, alone.text_classifier_ = adapter.projection_, adapter.text_classifier_
    alone.logit_scale_, alone.moved_ = adapter.logit_scale_, adapter.moved_
    if hasattr(adapter, "projection_bias_"):
        vars(alone)["projection_bias_"] = adapter.projection_bias_
    return alone.for_classes(text_classifier)
