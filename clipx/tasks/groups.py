"""Groups of rows (a class on a background, a hospital, a camera): how the worst of them fares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, mean_of_proportions, proportion

NO_GROUP = -1


@dataclass(frozen=True)
class GroupRow:
    """One group: its name, its rows, and how often they are right (None without a row)."""

    name: str
    support: int
    accuracy: Estimate | None


def group_accuracy(correct: Tensor | ArrayLike, groups: Tensor | ArrayLike) -> dict[str, Estimate]:
    """Accuracy of the worst group and the plain mean over groups, in [0, 1], with 95% intervals.

    ``worst_group`` is the lowest of several figures: its interval is that of the group taken by itself.

    Args:
        correct: whether each row is right, bool ``[N]`` (``Outcomes.ranks < 1``).
        groups: int64 ``[N]``, >= 0; -1 for a row of no group, which does not count.

    Returns:
        ``worst_group``, ``mean_group``, and ``group_gap``: the best less the worst, its interval the normal
        one of two independent proportions.

    Raises:
        ClipxError: if shapes do not match, a group is below -1, or no row has one.

    Source: Sagawa et al. 2020, worst-group accuracy.
    """
    hits, totals = _counts(correct, groups)
    present = totals > 0
    hits, totals = hits[present], totals[present]
    shares = hits / totals
    worst, best = int(shares.argmin()), int(shares.argmax())
    low, high = (proportion(int(hits[each]), int(totals[each])) for each in (worst, best))
    gap = high.value - low.value
    # Newcombe 1998, method 10: the ends come from the two Wilson intervals.
    down = ((high.value - high.low) ** 2 + (low.high - low.value) ** 2) ** 0.5
    up = ((high.high - high.value) ** 2 + (low.value - low.low) ** 2) ** 0.5
    return {
        "worst_group": low,
        "mean_group": mean_of_proportions(hits, totals),
        "group_gap": Estimate(gap, max(0.0, gap - down), min(1.0, gap + up)),
    }


def per_group(
    correct: Tensor | ArrayLike, groups: Tensor | ArrayLike, names: Sequence[str]
) -> list[GroupRow]:
    """Every group's rows and accuracy.

    Args:
        correct, groups: as for ``group_accuracy``.
        names: ``[G]``.

    Raises:
        ClipxError: as ``group_accuracy``, or if a group has no name.
    """
    hits, totals = _counts(correct, groups)
    if len(totals) > len(names):
        raise ClipxError(f"{len(names)} names for {len(totals)} groups")
    rows = [GroupRow(name, 0, None) for name in names]
    for place, (hit, total) in enumerate(zip(hits.tolist(), totals.tolist(), strict=True)):
        if total:
            rows[place] = GroupRow(names[place], total, proportion(hit, total))
    return rows


def _counts(
    correct: Tensor | ArrayLike, groups: Tensor | ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    right = torch.as_tensor(correct).cpu().bool().numpy()
    group = torch.as_tensor(groups).cpu().long().numpy()
    if right.ndim != 1 or right.shape != group.shape:
        raise ClipxError(f"correct {right.shape} and groups {group.shape} do not match")
    if (group < NO_GROUP).any():
        raise ClipxError("groups count from 0; -1 means none")
    right, group = right[group != NO_GROUP], group[group != NO_GROUP]
    if not len(group):
        raise ClipxError("no row has a group: there is no worst one")
    totals = np.bincount(group)
    return np.bincount(group[right], minlength=len(totals)), totals
