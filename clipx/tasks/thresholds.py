"""Curves over every threshold of a score: ROC and precision-recall, of rows that may have weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sorted:
    """Scores put in order once, so that a bootstrap draw costs a pass and no sort.

    Attributes:
        step: place of every row's score among the distinct scores, the highest first, int64 ``[N]``.
        steps: number of distinct scores.
        positive: bool ``[N]``.
    """

    step: NDArray[np.int64]
    steps: int
    positive: NDArray[np.bool_]


def in_order(scores: Floats, positive: NDArray[np.bool_]) -> Sorted:
    """Order rows by score; equal scores share a threshold.

    Args:
        scores: ``[N]``, finite; higher means more likely positive.
        positive: ``[N]``.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    return Sorted((len(distinct) - 1 - place).astype(np.int64), len(distinct), positive)


def counts(rows: Sorted, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """True and false positives at every threshold, the highest first, each ``[steps]``."""
    ones = np.ones(len(rows.step)) if weights is None else weights
    true = np.bincount(rows.step, ones * rows.positive, minlength=rows.steps).cumsum()
    false = np.bincount(rows.step, ones * ~rows.positive, minlength=rows.steps).cumsum()
    return true, false


def auroc(true: Floats, false: Floats) -> float:
    """Area under the ROC curve of counts ``[T]``: the chance that a positive scores above a negative."""
    x, y = np.concatenate([[0.0], false / false[-1]]), np.concatenate([[0.0], true / true[-1]])
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def average_precision(true: Floats, false: Floats) -> float:
    """Mean of the precision at every positive, equal scores together; NaN without a positive.

    Source: the step-wise sum of scikit-learn's ``average_precision_score``, without interpolation.
    """
    if not true[-1]:
        return float("nan")
    gains = np.diff(true, prepend=0.0)
    there = gains > 0
    return float((gains[there] * (true[there] / (true[there] + false[there]))).sum() / true[-1])


def fpr_at(true: Floats, false: Floats, tpr: float) -> float:
    """Share of the negatives above the highest threshold that keeps so large a share of the positives."""
    place = int(np.argmax(true >= tpr * true[-1] * (1 - 1e-12)))
    return float(false[place] / false[-1])
