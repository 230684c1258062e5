"""ProLIP: train only the projection into the joint space, kept near where it was; RLA: a map after it."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    Support,
    check_fitted,
    check_number,
    check_queries,
    checked,
    shots_per_class,
)
from clipx.adapters.protocol import copy, learnt
from clipx.adapters.search import hits
from clipx.adapters.training import Task, checked_task, cross_entropies, minimise, parameter
from clipx.adapters.views import Turns, first_of_groups
from clipx.errors import ClipxError

RATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001, 1e-4, 0.0)
RULES = {"1/K": 1, "1/K2": 2}


def project(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Unit rows ``[..., N, D]``: ``normalise(z W + b)``, the bias before the normalisation.

    Args:
        rows: ``[..., N, Do]``, any length.
        weight: ``[..., Do, D]``.
        bias: ``[D]`` of a ResNet's attention pool, or None.

    Source: Fahes et al. 2024, section 3.
    """
    mapped = rows @ weight
    return functional.normalize(mapped if bias is None else mapped + bias, dim=-1)


def distance(weight: Tensor, start: Tensor) -> Tensor:
    """The penalty ``sum((W - W0)^2)``, ``[...]``: a sum; a mean would be weaker by the number of entries."""
    return (weight - start).square().sum((-2, -1))


def penalty_of(rule: str | float, shots: float) -> float:
    """The penalty's weight: ``1/K``, ``1/K2``, or a number, for so many shots a class (the mean, if unequal).

    Raises:
        ClipxError: neither such a rule nor a number of 0 or more.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ClipxError(f"lam is {rule!r}", hint=f"one of {', '.join(RULES)}, or a number of 0 or more")
        return 1 / shots ** RULES[rule]
    check_number("lam", rule)
    return float(rule)


def checked_before(task: Task) -> tuple[Support, Tensor, Tensor | None]:
    """Check a task of rows before the projection; the projection's weight and bias in their dtype.

    Raises:
        ClipxError: see ``checks.checked``; no projection, or one of another shape.
    """
    if task.projection is None:
        raise ClipxError(
            "this model has no projection to train",
            hint="--method rla trains a linear map of its features instead",
        )
    support = checked(
        task.features,
        task.labels,
        task.text_classifier,
        logit_scale=task.logit_scale,
        validation=task.validation,
        groups=task.groups,
        unit=False,
        same_width=False,
    )
    weight, bias = task.projection
    shape = (support.features.shape[1], support.text_classifier.shape[1])
    if tuple(weight.shape) != shape:
        raise ClipxError(f"the projection is {list(weight.shape)}, must be {list(shape)}")
    return support, weight.to(support.features), None if bias is None else bias.to(support.features)


def shots_of(support: Support) -> float:
    """Images a class, the mean of all, which ``penalty_of`` goes by."""
    return (int(support.groups.max()) + 1) / support.classes


def train_projection(
    supports: Sequence[Support],
    start: Tensor,
    bias: Tensor | None,
    scale: float,
    *,
    lams: Sequence[float],
    lr: float,
    steps: int,
    eps: float,
) -> Tensor:
    """Projections ``[B, len(lams), Do, D]`` trained on B tasks of the same shapes at every penalty at once.

    Each step sees one view of every image, the second first, as the code does.

    Args:
        supports: checked tasks.
        start: ``[B, Do, D]``.
        bias: ``[B, 1, D]`` or None; it stays as it is.
        scale: of the logits.
        lams: weights of the penalty.
        lr: Adam's, on a cosine to 0.
        steps: full-batch.
        eps: Adam's.
    """
    copies = len(lams)
    features = torch.stack([one.features for one in supports])
    labels = torch.stack([first_of_groups(one.labels, one.groups) for one in supports])
    text = torch.stack([one.text_classifier for one in supports]).repeat_interleave(copies, 0)
    labels = labels.repeat_interleave(copies, 0)
    origin = start.repeat_interleave(copies, 0)
    bias = None if bias is None else bias.repeat_interleave(copies, 0)
    strength = start.new_tensor(list(lams)).repeat(len(supports))
    turns = [Turns(one.groups) for one in supports]
    weight = parameter(origin)
    places = torch.arange(len(supports), device=start.device)[:, None]

    def losses(step: int) -> Tensor:
        rows = features[places, torch.stack([turn(step + 1) for turn in turns])]
        mapped = project(rows.repeat_interleave(copies, 0), weight, bias)
        logits = scale * mapped @ text.transpose(1, 2)
        return cross_entropies(logits, labels) + strength * distance(weight, origin)

    minimise(losses, torch.optim.Adam([weight], lr=lr, eps=eps, fused=True), steps)
    return weight.detach().unflatten(0, (len(supports), copies))


class ProLIP:
    """The projection of the image tower, fine-tuned on cached features before it, with a penalty on moving.

    Args:
        lam: weight of the penalty where it is not searched: ``1/K`` or ``1/K2`` for K shots a class, or a
            number of 0 or more.
        lr: Adam's where it is not searched, on a cosine to 0; above 0. With ``1/K`` any from 1e-5 to 1e-2
            does.
        search: choose both on validation, where there is one, among ``lrs`` and ``lams``.
        lrs: learning rates of the grid.
        lams: penalties of the grid.
        steps: full-batch, 0 or more; each sees the next view of every image.
        eps: Adam's. Gradients are so small that 1e-4 damps the steps; 1e-8 is another method.

    Raises:
        ClipxError: a number out of range.

    Source: Fahes et al. 2024, "CLIP's Visual Embedding Projector is a Few-shot Cornucopia".
    """

    needs = "pre_projection"

    projection_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    lam_: float
    lr_: float
    moved_: float

    def __init__(
        self,
        lam: str | float = "1/K",
        lr: float = 1e-5,
        search: bool = False,
        lrs: Sequence[float] = RATES,
        lams: Sequence[float] = PENALTIES,
        steps: int = 300,
        eps: float = 1e-4,
    ) -> None:
        _check_settings(lam, lr, lrs, lams, steps, eps)
        self.lam, self.lr, self.search, self.lrs, self.lams = lam, lr, search, lrs, lams
        self.steps, self.eps = steps, eps

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
        """Train a copy of the projection; the given one stays as it is.

        Args:
            features: before the projection, ``[N, Do]``, of any length; those of ``validation`` too.
            labels, text_classifier, logit_scale, groups: see ``protocol.Adapter``.
            projection: weight ``[Do, D]`` and bias ``[D]`` or None; the bias is not trained.
            validation: or None.

        Raises:
            ClipxError: see ``checks.checked``; a model without a projection.
        """
        task = Task(
            features,
            labels,
            text_classifier,
            logit_scale,
            validation,
            groups,
            projection=projection,
        )
        vars(self).update(self.learn([task])[0])
        return self

    def learn(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The learnt attributes of each of several tasks of the same shapes, trained at once."""
        checks = [checked_before(task) for task in tasks]
        supports, starts = [one[0] for one in checks], [one[1] for one in checks]
        biases = [bias[None] for _, _, bias in checks if bias is not None]
        scale = float(tasks[0].logit_scale)
        return _learn(self, supports, torch.stack(starts), torch.stack(biases) if biases else None, scale)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of features before the projection ``[M, Do]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_, unit=False, width=self.projection_.shape[0])
        mapped = project(features, self.projection_, getattr(self, "projection_bias_", None))
        return self.logit_scale_ * mapped @ self.text_classifier_.T

    def for_classes(self, text_classifier: Tensor) -> "ProLIP":
        """The same projection before other classes ``[C', D]``."""
        return _for_classes(self, text_classifier)


class RLA:
    """A linear map of the features, the identity at first, with a penalty on moving from it.

    For models whose features before the projection are out of reach, or that have none.

    Args:
        lam, lr, search, lrs, lams, steps, eps: as ``ProLIP``.

    Raises:
        ClipxError: a number out of range.

    Source: Fahes et al. 2024, section 4, "regularized linear adapter".
    """

    needs = "features"

    projection_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    lam_: float
    lr_: float
    moved_: float

    def __init__(
        self,
        lam: str | float = "1/K",
        lr: float = 1e-3,
        search: bool = False,
        lrs: Sequence[float] = RATES,
        lams: Sequence[float] = PENALTIES,
        steps: int = 300,
        eps: float = 1e-4,
    ) -> None:
        _check_settings(lam, lr, lrs, lams, steps, eps)
        self.lam, self.lr, self.search, self.lrs, self.lams = lam, lr, search, lrs, lams
        self.steps, self.eps = steps, eps

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Train the map.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        task = Task(features, labels, text_classifier, logit_scale, validation, groups)
        vars(self).update(self.learn([task])[0])
        return self

    def learn(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The learnt attributes of each of several tasks of the same shapes, trained at once."""
        supports = [checked_task(task) for task in tasks]
        identity = torch.eye(supports[0].features.shape[1]).to(supports[0].features)
        return _learn(self, supports, identity.repeat(len(tasks), 1, 1), None, float(tasks[0].logit_scale))

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        return self.logit_scale_ * project(features, self.projection_) @ self.text_classifier_.T

    def for_classes(self, text_classifier: Tensor) -> "RLA":
        """The same map before other classes ``[C', D]``."""
        return _for_classes(self, text_classifier)


def _check_settings(
    lam: str | float, lr: float, lrs: Sequence[float], lams: Sequence[float], steps: int, eps: float
) -> None:
    penalty_of(lam, 1)
    check_number("lr", lr, open_below=True)
    for rate in lrs:
        check_number("lrs", rate, open_below=True)
    for value in lams:
        check_number("lams", value)
    if not len(lrs) or not len(lams):
        raise ClipxError("lrs and lams must name a value each")
    check_number("steps", steps)
    check_number("eps", eps, open_below=True)


def _learn(
    adapter: ProLIP | RLA, supports: Sequence[Support], start: Tensor, bias: Tensor | None, scale: float
) -> list[dict[str, Any]]:
    """The learnt attributes of each task, at the given settings or those of the grid that are best."""
    for support in supports:
        shots_per_class(support, missing="warn")
    given = penalty_of(adapter.lam, shots_of(supports[0]))
    searched = adapter.search and all(support.validation is not None for support in supports)
    grid = [(lr, adapter.lams) for lr in adapter.lrs] if searched else [(adapter.lr, [given])]
    best = [-1] * len(supports)
    states: list[dict[str, Any]] = [{} for _ in supports]
    for lr, lams in grid:
        trained = train_projection(
            supports, start, bias, scale, lams=lams, lr=lr, steps=adapter.steps, eps=adapter.eps
        )
        for place, support in enumerate(supports):
            own = None if bias is None else bias[place, 0]
            for weight, lam in zip(trained[place], lams, strict=True):
                right = 0
                if searched:
                    assert support.validation is not None
                    rows, truth = support.validation
                    logits = scale * project(rows, weight, own) @ support.text_classifier.T
                    right = int(hits(logits, truth))
                if right > best[place]:
                    best[place] = right
                    states[place] = {
                        "projection_": weight.clone(),
                        "text_classifier_": support.text_classifier,
                        "logit_scale_": scale,
                        "lam_": float(lam),
                        "lr_": float(lr),
                        "moved_": float(distance(weight, start[place])),
                    }
                    if own is not None:
                        states[place]["projection_bias_"] = own.clone()
    return states


def _for_classes(adapter: Any, text_classifier: Tensor) -> Any:
    check_fitted(adapter)
    if not len(text_classifier):
        raise ClipxError("there are no classes")
    other = copy(adapter)
    vars(other).update(learnt(adapter))
    other.text_classifier_ = check_queries(text_classifier, adapter.text_classifier_)
    return other
