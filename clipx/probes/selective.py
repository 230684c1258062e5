"""Selective prediction: how often a classifier errs on the images that it is most sure of."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipx.tasks.intervals import Estimate, percentile_interval, resampled

COVERAGE = 0.8


def selective(confidence: ArrayLike, correct: ArrayLike, *, seed: int = 0) -> dict[str, Estimate]:
    """The area under the risk-coverage curve, and the risk at a coverage of 0.8, with bootstrap intervals.

    Equal confidences share their errors evenly, so that the order of the rows does not matter.

    Args:
        confidence: ``[N]``, N >= 1.
        correct: bool ``[N]``.
        seed: of the bootstrap.

    Returns:
        ``aurc``, the mean of the error rate among the surest 1, 2, ..., N rows, and ``selective_risk``, that
        among the surest 80%; both in [0, 1], lower is better.

    Source: Geifman, Uziel and El-Yaniv 2019, section 3.
    """
    sure = np.asarray(confidence, np.float64)
    _, tie, sizes = np.unique(-sure, return_inverse=True, return_counts=True)
    wrong = 1 - np.asarray(correct, np.float64)
    order = np.argsort(tie, kind="stable")
    errors = (np.bincount(tie, wrong) / sizes)[tie][order]

    def measure(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        own = weights[order]
        seen = own.cumsum()
        risk = (own * errors).cumsum() / np.maximum(seen, 1)
        at = int(np.argmax(seen >= COVERAGE * seen[-1] * (1 - 1e-12)))
        return np.array([(own * risk).sum() / seen[-1], risk[at]])

    values, draws = measure(np.ones(len(sure))), resampled(measure, len(sure), seed=seed)
    names = ("aurc", "selective_risk")
    return {
        name: percentile_interval(float(value), draws[:, place])
        for place, (name, value) in enumerate(zip(names, values, strict=True))
    }
