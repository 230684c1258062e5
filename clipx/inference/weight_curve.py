"""The straight line between the weights of two models, measured along the way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.inference.before_after import Head, Measured, class_scores, measured
from clipx.inference.evaluation import Evaluation
from clipx.models.clip import CLIP
from clipx.models.interpolation import interpolate
from clipx.tasks.classification import accuracy, outcomes
from clipx.tasks.intervals import Estimate

Mix = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], dict[str, Tensor]]
"""The weights between those at alpha 0 and those at alpha 1, at an alpha."""


@dataclass(frozen=True)
class Point:
    """What the model at ``alpha`` gives on each evaluation, by its name."""

    alpha: float
    measured: dict[str, Measured]


def state_of(clip: CLIP, head: Head | None = None) -> dict[str, Tensor]:
    """A copy of the weights of a model and of its head: ``clip.<name>``, ``head.<name>``."""
    parts = {"clip": clip.state_dict()} | ({} if head is None else {"head": head.module.state_dict()})
    return {
        f"{part}.{name}": value.detach().clone() for part, own in parts.items() for name, value in own.items()
    }


def put(state: Mapping[str, Tensor], clip: CLIP, head: Head | None = None) -> None:
    """Give a model, and its head, the weights that ``state_of`` named."""
    clip.load_state_dict(_part(state, "clip."))
    if head is not None:
        head.module.load_state_dict(_part(state, "head."))


def weight_curve(
    clip: CLIP,
    head: Head | None,
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    alphas: Sequence[float],
    evaluations: Mapping[str, Evaluation],
    mix: Mix = interpolate,
) -> list[Point]:
    """Measure the models between two, whose weights are mixed.

    Args:
        clip, head: what is measured; they are left with the weights of the last alpha.
        ends: weights of the models at alpha 0 and at alpha 1, as ``state_of`` gives them.
        alphas: each in [0, 1].
        evaluations: by a name.
        mix: ``interpolate``, or another way of averaging.

    Raises:
        ClipxError: as ``mix``.

    Source: Wortsman et al. 2022 (WiSE-FT), figure 1.
    """
    points = []
    for alpha in alphas:
        put(mix(*ends, alpha), clip, head)
        found = {name: measured(evaluation, clip, head) for name, evaluation in evaluations.items()}
        points.append(Point(float(alpha), found))
    return points


def ensemble_top1(
    clip: CLIP,
    head: Head | None,
    ends: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    alpha: float,
    evaluation: Evaluation,
) -> Estimate | None:
    """Top-1 of the mean of both models' logits, weighted as the weights are: the control of twice the cost.

    None where nothing is labelled. Arguments as ``weight_curve`` takes them.
    """
    total: Tensor | None = None
    labels = torch.empty(0)
    for share, state in zip((1 - alpha, alpha), ends, strict=True):
        put(state, clip, head)
        scored = class_scores(evaluation, clip, head)
        if scored is None:
            return None
        logits, labels = scored
        total = share * logits if total is None else total + share * logits
    assert total is not None
    return accuracy(outcomes(total, labels))["top1"]


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
