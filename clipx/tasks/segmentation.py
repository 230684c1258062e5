"""Segmentation: which share of the pixels of each class is found, counted image by image.

seen = join(pixel_counts(predicted, target, classes=21) for predicted, target in batches)
estimates = segmentation(seen)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, percentile_interval, resampled

Counts = NDArray[np.int64]
MEASURES = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of every image and class, int64 ``[I, C]``: predicted rightly, predicted at all, and true."""

    hits: Counts
    predicted: Counts
    true: Counts


def pixel_counts(
    predicted: Tensor, target: Tensor, classes: int, *, ignore_index: int | None = 255
) -> PixelCounts:
    """Count the pixels of a batch of images; those whose target is ``ignore_index`` do not count at all.

    Args:
        predicted: integers ``[B, H, W]`` in [0, classes).
        target: integers ``[B, H, W]`` in [0, classes), or ``ignore_index``.
        classes: how many there are, background among them.
        ignore_index: None where every pixel counts.

    Raises:
        ClipxError: if shapes do not match or a class lies outside.
    """
    if predicted.ndim != 3 or predicted.shape != target.shape:
        raise ClipxError(f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} do not match")
    counts = []
    for image, truth in zip(predicted.long(), target.long(), strict=True):
        kept = torch.ones_like(truth, dtype=torch.bool) if ignore_index is None else truth != ignore_index
        ours, theirs = image[kept], truth[kept]
        for name, pixels in (("predicted", ours), ("target", theirs)):
            if len(pixels) and (int(pixels.min()) < 0 or int(pixels.max()) >= classes):
                raise ClipxError(
                    f"{name} pixels have classes from {int(pixels.min())} to {int(pixels.max())}, "
                    f"of {classes} classes",
                    hint=f"pixels that do not count have target {ignore_index} (ignore_index)",
                )
        counts.append([each.bincount(minlength=classes) for each in (ours[ours == theirs], ours, theirs)])
    if not counts:
        empty = np.zeros((0, classes), np.int64)
        return PixelCounts(empty, empty, empty)
    return PixelCounts(*(torch.stack(each).cpu().numpy() for each in zip(*counts, strict=True)))


def join(parts: Iterable[PixelCounts]) -> PixelCounts:
    """Put the counts of several batches together.

    Raises:
        ClipxError: if there are none, or they count different classes.
    """
    parts = list(parts)
    if len({part.hits.shape[1] for part in parts}) != 1:
        raise ClipxError("there are no images" if not parts else "these batches count different classes")
    return PixelCounts(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("hits", "predicted", "true"))
    )


def class_iou(seen: PixelCounts) -> NDArray[np.float64]:
    """Intersection over union of every class over all images, ``[C]``; NaN where it is nowhere."""
    return _iou(*(each.sum(0).astype(np.float64) for each in (seen.hits, seen.predicted, seen.true)))


def segmentation(seen: PixelCounts, *, seed: int = 0, draws: int = 1000) -> dict[str, Estimate]:
    """mIoU, pixel accuracy, mean accuracy and frequency-weighted IoU, with intervals over images.

    Classes that are neither predicted nor true anywhere do not count. Pixels are summed over all images
    before a ratio is taken, as the benchmarks do.

    Args:
        seen: counts of I >= 1 images.
        seed, draws: of the bootstrap over images.

    Returns:
        ``miou``, ``pixel_accuracy``, ``mean_accuracy`` (over classes), ``fw_iou``; in [0, 1].

    Raises:
        ClipxError: if no pixel counts.

    Source: Long, Shelhamer and Darrell 2015, section 5; Everingham et al. 2010 (Pascal VOC).
    """
    if not seen.true.sum():
        raise ClipxError("no pixel has a class: there is nothing to measure")
    parts = [each.astype(np.float64) for each in (seen.hits, seen.predicted, seen.true)]
    values = _measures(*(each.sum(0) for each in parts))
    drawn = resampled(
        lambda weights: _measures(*(weights @ each for each in parts)),
        len(seen.hits),
        seed=seed,
        draws=draws,
    )
    return {
        name: percentile_interval(value, column)
        for name, value, column in zip(MEASURES, values, drawn.T, strict=True)
    }


def _iou(hits: NDArray, predicted: NDArray, true: NDArray) -> NDArray[np.float64]:
    union = predicted + true - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def _measures(hits: NDArray, predicted: NDArray, true: NDArray) -> list[float]:
    if not true.sum():
        return [float("nan")] * len(MEASURES)
    iou, present = _iou(hits, predicted, true), true > 0
    return [
        float(np.nanmean(iou)),
        float(hits.sum() / true.sum()),
        float((hits[present] / true[present]).mean()),
        float((true[present] * iou[present]).sum() / true.sum()),
    ]
