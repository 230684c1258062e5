"""How two clouds of unit vectors lie: gap, alignment, uniformity, effective rank, margins.

An image may have several texts and a text several images: which belong together is a list of pairs. Where
they are one to one, every figure is the one that papers give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from clipx.errors import ClipxError
from clipx.objectives.alignment import squared_distances
from clipx.objectives.uniformity import UNIFORMITY_T, kernel_log_sums

_AT_ONCE = 2**24


def centroid_distance(images: Tensor, texts: Tensor) -> Tensor:
    """Distance of the two means, a scalar in [0, 2]: the modality gap.

    Args:
        images: unit rows ``[M, D]``.
        texts: unit rows ``[T, D]``.

    Source: Liang et al. 2022, "Mind the Gap", section 2.
    """
    return torch.linalg.vector_norm(images.mean(0) - texts.mean(0))


def alignment(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    """Squared distance of every pair, ``[P]`` in [0, 4]; lower is better aligned.

    Args:
        images: unit rows ``[M, D]``.
        texts: unit rows ``[T, D]``.
        pairs: int64 ``[P, 2]`` of (image, text).

    Source: Wang and Isola 2020, equation 5 with exponent 2.
    """
    return squared_distances(images[pairs[:, 0]], texts[pairs[:, 1]])


def paired_cosines(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    """Cosine of every pair, ``[P]``."""
    return (images[pairs[:, 0]] * texts[pairs[:, 1]]).sum(1)


def uniformity(rows: Tensor, t: float = UNIFORMITY_T) -> tuple[Tensor, Tensor]:
    """How evenly unit rows ``[N, D]`` cover the sphere: ``log mean exp(-t |x - y|^2)`` over distinct pairs.

    Returns:
        The value, a scalar below 0 (lower is more even), and its standard error over draws of rows, by the
        delta method for U-statistics (Hoeffding 1948).

    Raises:
        ClipxError: fewer than two rows, which make no pair.

    Source: Wang and Isola 2020, equation 6.
    """
    count = len(rows)
    if count < 2:
        raise ClipxError("uniformity needs two rows or more", hint="more samples: a larger limit")
    parts = []
    for first in range(0, count, _chunk(count)):
        part, places = rows[first : first + _chunk(count)], torch.arange(count, device=rows.device)
        own = places[first : first + _chunk(count), None] == places
        parts.append(kernel_log_sums(part @ rows.T, own, t))
    return _log_mean(torch.cat(parts) - math.log(count - 1))


def cross_uniformity(
    images: Tensor, texts: Tensor, pairs: Tensor, t: float = UNIFORMITY_T
) -> tuple[Tensor, Tensor]:
    """``log mean exp(-t |x - y|^2)`` over images and texts that do not belong together.

    Args:
        images: unit rows ``[M, D]``.
        texts: unit rows ``[T, D]``.
        pairs: int64 ``[P, 2]`` of (image, text).
        t: of the kernel.

    Returns:
        The value and its standard error over draws of images.

    Raises:
        ClipxError: every image belongs to every text.

    Source: Fahim, Murphy and Fyshe 2024, equation of L_xuniform.
    """
    sums, counts = [], []
    for others, own in _against(images, texts, pairs):
        sums.append(kernel_log_sums(others, own, t))
        counts.append((~own).sum(1))
    each, count = torch.cat(sums), torch.cat(counts)
    kept = count > 0
    if not kept.any():
        raise ClipxError("every image belongs to every text: there is no pair that does not")
    total, weight = torch.logsumexp(each[kept], 0), count[kept].sum()
    value = total - weight.to(total).log()
    relative = (each[kept] - total).exp() * kept.sum() - count[kept].to(total) / weight * kept.sum()
    return value, _spread(relative)


def unpaired_cosine(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    """Mean cosine of images ``[M, D]`` and texts ``[T, D]`` that do not belong together, a scalar.

    Raises:
        ClipxError: every image belongs to every text.
    """
    everything = images.sum(0) @ texts.sum(0)
    left = len(images) * len(texts) - len(pairs)
    if not left:
        raise ClipxError("every image belongs to every text: there is no pair that does not")
    return (everything - paired_cosines(images, texts, pairs).sum()) / left


def margins(images: Tensor, texts: Tensor, pairs: Tensor) -> Tensor:
    """How far every pair's cosine lies above that of the image with its best wrong text, ``[P]`` in [-2, 2].

    Args:
        images: unit rows ``[M, D]``.
        texts: unit rows ``[T, D]``.
        pairs: int64 ``[P, 2]`` of (image, text); an image without a wrong text gives infinity.

    Source: Chen et al. 2024, "Understanding Transferable Representation Learning", section 4.
    """
    best = []
    for others, own in _against(images, texts, pairs):
        others[own] = -torch.inf
        best.append(others.amax(1))
    return paired_cosines(images, texts, pairs) - torch.cat(best)[pairs[:, 0]]


def rank_agreement(images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """How alike the two halves of every pair rank the other pairs, Spearman's correlation, twice ``[P]``.

    Args:
        images: unit rows ``[M, D]``.
        texts: unit rows ``[T, D]``.
        pairs: int64 ``[P, 2]`` of (image, text).

    Returns:
        In-modal: the order in which the image ranks the other images against that in which its text ranks
        their texts. Cross-modal: the order in which the image ranks the other texts against that in which its
        text ranks the other images. Equal values share the mean of their ranks; 0 where a row has no order.

    Source: Zhang et al. 2025, "RankCLIP", whose objective asks for these orders to agree.
    """
    image, text = images[pairs[:, 0]], texts[pairs[:, 1]]
    cross = image @ text.T
    in_modal = _rank_correlation(_off_diagonal(image @ image.T), _off_diagonal(text @ text.T))
    return in_modal, _rank_correlation(_off_diagonal(cross), _off_diagonal(cross.T))


def effective_rank(rows: Tensor) -> Tensor:
    """The number of directions that rows ``[N, D]`` use about their mean, a scalar in [1, min(N, D)].

    The exponential of the entropy of the singular values as shares of their sum; 1 where all rows are alike.

    Source: Roy and Vetterli 2007, definition 1.
    """
    values = torch.linalg.svdvals(rows - rows.mean(0))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp()


def explained_variance(rows: Tensor) -> Tensor:
    """Share of the variance in the first 1, 2, ... principal directions of rows: ``[min(N, D)]``, up to 1."""
    variances = torch.linalg.svdvals(rows - rows.mean(0)).square()
    return variances.cumsum(0) / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)


def _off_diagonal(square: Tensor) -> Tensor:
    size = len(square)
    return square[~torch.eye(size, dtype=torch.bool, device=square.device)].reshape(size, size - 1)


def _rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of each row of ``[P, N]`` with that of the other."""
    from scipy.stats import rankdata

    first, second = (torch.from_numpy(rankdata(each.cpu().numpy(), axis=1)).to(one) for each in (one, other))
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return torch.cosine_similarity(first, second, dim=1)


def _against(images: Tensor, texts: Tensor, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of images: their cosines with all texts ``[B, T]``, and which of these belong together."""
    step = _chunk(len(texts))
    for first in range(0, len(images), step):
        part = images[first : first + step]
        own = torch.zeros(len(part), len(texts), dtype=torch.bool, device=images.device)
        inside = (pairs[:, 0] >= first) & (pairs[:, 0] < first + len(part))
        own[pairs[inside, 0] - first, pairs[inside, 1]] = True
        yield part @ texts.T, own


def _chunk(width: int) -> int:
    return max(1, _AT_ONCE // max(1, width))


def _log_mean(logs: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean of ``exp(logs)`` and the error of it where every entry is a mean over partners."""
    value = torch.logsumexp(logs, 0) - math.log(len(logs))
    return value, 2 * _spread((logs - value).exp())


def _spread(relative: Tensor) -> Tensor:
    return relative.std(correction=1 if len(relative) > 1 else 0) / len(relative) ** 0.5
