"""Weighted k nearest neighbours: what the most alike training rows are labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError

TEMPERATURE = 0.07
"""Wu et al. 2018; DINO and DINOv2."""

_AT_ONCE = 2**24


def neighbour_scores(
    similarities: Tensor, labels: Tensor, ks: Sequence[int], classes: int, temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Scores ``[M, C]`` for every number of neighbours, from one search for the most.

    The weights are the softmax over the most neighbours that any k asks for, and are not made to sum to 1
    again for a smaller k, which changes no answer.

    Args:
        similarities: of the nearest, descending, ``[M, K]``.
        labels: of the same, int64 ``[M, K]``.
        ks: numbers of neighbours, each within 1..K.
        classes: C.
        temperature: of the weights, above 0.

    Source: Oquab et al. 2023 (DINOv2), ``KnnModule``.
    """
    weights = (similarities / temperature).softmax(1)
    scores, total, before = {}, similarities.new_zeros(len(similarities), classes), 0
    for k in sorted(ks):
        total = total.scatter_add(1, labels[:, before:k], weights[:, before:k])
        scores[k], before = total, k
    return scores


def nearest(rows: Tensor, to: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the k rows of ``to`` ``[N, D]`` most alike each of ``rows``: ``[M, k]`` each.

    Raises:
        ClipxError: k is more than there are.
    """
    if k > len(to):
        raise ClipxError(
            f"k={k} neighbours among {len(to)} training rows",
            hint=f"k up to {len(to)}: probe.neighbours.ks=[...]",
        )
    ours, theirs = functional.normalize(rows, dim=1), functional.normalize(to, dim=1)
    found = [(part @ theirs.T).topk(k, dim=1) for part in ours.split(max(1, _AT_ONCE // len(to)))]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])
