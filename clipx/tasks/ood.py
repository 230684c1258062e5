"""Out-of-distribution detection: does a score tell what belongs from what does not?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, percentile_interval
from clipx.tasks.thresholds import Sorted, auroc, average_precision, counts, fpr_at, in_order

TPR = 0.95


def detection(
    inside: Tensor | ArrayLike, outside: Tensor | ArrayLike, *, seed: int = 0, draws: int = 200
) -> dict[str, Estimate]:
    """AUROC, AUPR either way, and FPR95, in [0, 1], with bootstrap intervals that draw each side by itself.

    Args:
        inside: scores of what belongs, ``[N]``; higher means more likely to belong (maximum softmax, maximum
            logit, minus energy).
        outside: scores of what does not, ``[M]``.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        ``auroc``; ``aupr_in`` with what belongs as the positives, ``aupr_out`` with what does not; ``fpr95``:
        the share of ``outside`` that is let in where 95% of ``inside`` is (lower is better).

    Raises:
        ClipxError: if a side is empty or a score is not finite.

    Source: Hendrycks and Gimpel 2017, section 2.
    """
    ours, theirs = _checked("inside", inside), _checked("outside", outside)
    scores = np.concatenate([ours, theirs])
    belongs = np.arange(len(scores)) < len(ours)
    forward, backward = in_order(scores, belongs), in_order(-scores, ~belongs)
    values = _measures(forward, backward)
    generator = np.random.default_rng(seed)
    drawn = [
        _measures(
            forward, backward, np.concatenate([_drawn(generator, len(side)) for side in (ours, theirs)])
        )
        for _ in range(draws)
    ]
    return {
        name: percentile_interval(value, [each[name] for each in drawn]) for name, value in values.items()
    }


def _measures(
    forward: Sorted, backward: Sorted, weights: NDArray[np.float64] | None = None
) -> dict[str, float]:
    true, false = counts(forward, weights)
    return {
        "auroc": auroc(true, false),
        "aupr_in": average_precision(true, false),
        "aupr_out": average_precision(*counts(backward, weights)),
        "fpr95": fpr_at(true, false, TPR),
    }


def _drawn(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    return np.bincount(generator.integers(0, size, size), minlength=size).astype(np.float64)


def _checked(name: str, scores: Tensor | ArrayLike) -> NDArray[np.float64]:
    rows = torch.as_tensor(scores).detach().cpu().double().numpy()
    if rows.ndim != 1 or not rows.size:
        raise ClipxError(f"scores of what is {name} must be a list of at least one, not {rows.shape}")
    if not np.isfinite(rows).all():
        raise ClipxError(f"scores of what is {name} are not finite")
    return rows
