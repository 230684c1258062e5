"""Scores of how much an image belongs to the classes that a classifier knows; higher: it belongs."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError

TEMPERATURE = 1.0
"""Of softmax and energy on bare cosines (Ming et al. 2022, section 3); the model's scale is far sharper."""

SCORES = ("mcm", "msp", "max-logit", "energy", "entropy", "variance", "mahalanobis", "knn")
_LEAST_SHARE = 1e-8


def score(name: str, cosines: Tensor, logit_scale: float, temperature: float = TEMPERATURE) -> Tensor:
    """A score from the cosines of images and class vectors alone, ``[N]``.

    Args:
        name: ``mcm`` the largest softmax probability of the cosines; ``msp`` of the scaled cosines;
            ``max-logit`` the largest cosine; ``energy`` ``T logsumexp(cos / T)``; ``entropy`` minus that of
            the softmax of the cosines; ``variance`` of that softmax over the classes.
        cosines: ``[N, C]``.
        logit_scale: of the model, for ``msp``.
        temperature: of the others, above 0.

    Raises:
        ClipxError: there is no such score.

    Source: Ming et al. 2022 (MCM), section 3; Hendrycks and Gimpel 2017 (MSP); Liu et al. 2020 (energy).
    """
    shares = (cosines / temperature).softmax(1)
    match name:
        case "mcm":
            return shares.amax(1)
        case "msp":
            return (logit_scale * cosines).softmax(1).amax(1)
        case "max-logit":
            return cosines.amax(1)
        case "energy":
            return temperature * (cosines / temperature).logsumexp(1)
        case "entropy":
            return torch.special.xlogy(shares, shares).sum(1)
        case "variance":
            return shares.var(1, correction=0)
    raise ClipxError(f"there is no score {name!r} of cosines")


def mahalanobis(rows: Tensor, train: Tensor, labels: Tensor) -> Tensor:
    """``-d^2 / 2`` to the nearest class mean under the covariance that all classes share, ``[N]``.

    Directions in which the training rows do not vary do not count.

    Args:
        rows: ``[N, D]``.
        train: ``[M, D]``.
        labels: int64 ``[M]``; rows labelled -1 are passed over.

    Raises:
        ClipxError: no training row is labelled.

    Source: Lee et al. 2018, equations 1 and 2.
    """
    train, labels = train[labels != UNLABELLED].double(), labels[labels != UNLABELLED]
    if not len(train):
        raise ClipxError("no training image is of a known class: there is no mean to be near to")
    present, places = labels.unique(return_inverse=True)
    sums = train.new_zeros(len(present), train.shape[1]).index_add(0, places, train)
    means = sums / places.bincount()[:, None]
    inner = train - means[places]
    precision = torch.linalg.pinv(inner.T @ inner / len(train), rtol=_LEAST_SHARE, hermitian=True)
    rows = rows.double()
    # |x - m|^2 in the metric, expanded: no [N, C, D] is ever held.
    towards = rows @ precision
    own = (towards * rows).sum(1)[:, None]
    squared = own - 2 * towards @ means.T + ((means @ precision) * means).sum(1)
    return -squared.amin(1).clamp_min(0) / 2


def neighbour(rows: Tensor, train: Tensor, k: int, chunk: int = 4096) -> Tensor:
    """Minus the distance to the k-th nearest training row, ``[N]``.

    Args:
        rows: unit rows ``[N, D]``.
        train: unit rows ``[M, D]``.
        k: from 1; of fewer training rows the furthest.
        chunk: rows at once.

    Raises:
        ClipxError: there is no training row.

    Source: Sun et al. 2022, section 3.
    """
    if not len(train):
        raise ClipxError("there is no training image to be near to")
    k = min(k, len(train))
    train = train.double()
    nearest = torch.cat([(part.double() @ train.T).topk(k, 1).values[:, -1] for part in rows.split(chunk)])
    return -(2 - 2 * nearest).clamp_min(0).sqrt()
