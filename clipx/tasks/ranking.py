"""Ranked lists with graded relevance: nDCG."""

from __future__ import annotations

from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, mean


def ndcg(
    scores: Tensor | ArrayLike,
    relevance: Tensor | ArrayLike,
    k: int = 10,
    *,
    gain: Literal["linear", "exponential"] = "linear",
) -> Tensor:
    """Normalised discounted cumulative gain at k of every query, in [0, 1]; NaN where nothing is relevant.

    Candidates that score alike share their ranks: each gets the mean of the discounts, which is what any
    order of them gives on average.

    Args:
        scores: ``[Q, C]``, higher is ranked first.
        relevance: ``[Q, C]``, grades >= 0.
        k: ranks that count; more than C means all.
        gain: of a grade r: r ("linear", trec_eval and BEIR), or 2^r - 1 ("exponential", Burges 2005).

    Returns:
        float64 ``[Q]``.

    Raises:
        ClipxError: if shapes do not match, k < 1, a grade is negative or a score is NaN.

    Source: Järvelin and Kekäläinen 2002; McSherry and Najork 2008 for ties.
    """
    rows, grades = torch.as_tensor(scores).double(), torch.as_tensor(relevance).double()
    if rows.ndim != 2 or rows.shape != grades.shape:
        raise ClipxError(f"scores {tuple(rows.shape)} and relevance {tuple(grades.shape)} do not match")
    if k < 1:
        raise ClipxError(f"k={k} ranks cannot be looked at", hint="k=10")
    if (grades < 0).any() or rows.isnan().any() or grades.isnan().any():
        raise ClipxError("relevance must be 0 or more, and scores and relevance no NaN")
    gains = grades if gain == "linear" else 2**grades - 1
    ideal = _dcg(gains, gains, k)
    return torch.where(ideal > 0, _dcg(rows, gains, k) / ideal, torch.nan)


def _dcg(scores: Tensor, gains: Tensor, k: int) -> Tensor:
    size = scores.shape[1]
    discounts = 1 / torch.log2(torch.arange(2, size + 2, dtype=torch.float64, device=scores.device))
    discounts[k:] = 0
    ordered, order = scores.sort(dim=1, descending=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = starts.cumsum(1) - 1
    zeros = torch.zeros_like(ordered)
    members = zeros.scatter_add(1, group, torch.ones_like(ordered))
    total = zeros.scatter_add(1, group, discounts.expand_as(ordered))
    shared = (total / members.clamp(min=1)).gather(1, group)
    return (shared * gains.gather(1, order)).sum(1)


def ranking(
    scores: Tensor | ArrayLike,
    relevance: Tensor | ArrayLike,
    *,
    at: tuple[int, ...] = (10,),
    gain: Literal["linear", "exponential"] = "linear",
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean nDCG over the queries that have something relevant, with its 95% interval over queries.

    Args:
        scores, relevance, gain: as for ``ndcg``.
        at: ranks that count.
        seed: of the bootstrap interval.

    Returns:
        ``ndcg@10``, and so on.

    Raises:
        ClipxError: as ``ndcg``, or if nothing is relevant to any query.
    """
    estimates = {}
    for k in at:
        found = ndcg(scores, relevance, k, gain=gain)
        found = found[~found.isnan()]
        if not len(found):
            raise ClipxError("nothing is relevant to any query: there is no nDCG to measure")
        estimates[f"ndcg@{k}"] = mean(found.cpu().numpy(), seed=seed)
    return estimates
