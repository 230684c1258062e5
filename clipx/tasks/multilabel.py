"""Several labels an image: mean average precision over the classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, percentile_interval, resampled
from clipx.tasks.thresholds import Sorted, average_precision, counts, in_order

UNKNOWN = -1
"""Target of an image of which nobody said whether it shows the class."""


def multi_label(
    scores: Tensor | ArrayLike, targets: Tensor | ArrayLike, *, seed: int = 0, draws: int = 200
) -> dict[str, Estimate]:
    """Mean average precision over the classes that have a positive, in [0, 1], with its bootstrap interval.

    Args:
        scores: ``[N, C]``, higher means more likely.
        targets: ``[N, C]``: 1 where the image shows the class, 0 where not, -1 where nobody knows: that entry
            does not count.
        seed, draws: of the bootstrap over images; a draw costs a pass over all entries.

    Returns:
        ``map``.

    Raises:
        ClipxError: if shapes do not match, a target is something else, a score is NaN, or no class has a
            positive.
    """
    rows, truth = _checked(scores, targets)
    columns = _columns(rows, truth)

    def measure(weights: NDArray[np.float64] | None) -> float:
        found = [
            average_precision(*counts(each, None if weights is None else weights[kept]))
            for kept, each in columns
        ]
        return float(np.nanmean(found))

    return {"map": percentile_interval(measure(None), resampled(measure, len(rows), seed=seed, draws=draws))}


def average_precisions(scores: Tensor | ArrayLike, targets: Tensor | ArrayLike) -> NDArray[np.float64]:
    """Average precision of every class ``[C]``; NaN for those without a positive; as for ``multi_label``."""
    rows, truth = _checked(scores, targets)
    found = np.full(rows.shape[1], np.nan)
    for place in np.flatnonzero((truth == 1).any(0)):
        kept = truth[:, place] != UNKNOWN
        found[place] = average_precision(*counts(in_order(rows[kept, place], truth[kept, place] == 1)))
    return found


def _columns(rows: NDArray[np.float64], truth: NDArray[np.int64]) -> list[tuple[NDArray[np.bool_], Sorted]]:
    kept = truth != UNKNOWN
    return [
        (kept[:, place], in_order(rows[kept[:, place], place], truth[kept[:, place], place] == 1))
        for place in np.flatnonzero((truth == 1).any(0))
    ]


def _checked(
    scores: Tensor | ArrayLike, targets: Tensor | ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows = torch.as_tensor(scores).detach().cpu().double().numpy()
    truth = torch.as_tensor(targets).cpu().long().numpy()
    if rows.ndim != 2 or rows.shape != truth.shape:
        raise ClipxError(f"scores {rows.shape} and targets {truth.shape} do not match")
    if not np.isin(truth, (0, 1, UNKNOWN)).all():
        raise ClipxError("targets must be 1, 0 or -1 (unknown)")
    if np.isnan(rows).any():
        raise ClipxError("scores hold NaN")
    if not (truth == 1).any():
        raise ClipxError("no image shows any class: there is no average precision to measure")
    return rows, truth
