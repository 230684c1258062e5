"""How images and texts lie apart: gap, alignment, uniformity, effective rank, separability, margins."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.adapters.checks import check_number
from clipx.adapters.logistic import LogisticPath
from clipx.errors import ClipxError
from clipx.probes import geometry
from clipx.probes.protocol import Material, Result, Table
from clipx.tasks.intervals import (
    Estimate,
    Z,
    mean,
    mean_of_proportions,
    percentile_interval,
    resampled,
)
from clipx.tasks.retrieval import retrieval

RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1")
"""What a smaller gap must not cost."""

_RANKED = 1000
"""Pairs, evenly spread, whose orders are compared: sorting grows with their square."""

_SEPARATES_AT = 1.0
"""C of the separating regression, scikit-learn's default, which the paper's code keeps."""


class ModalityGap:
    """The gap between the images and the texts of a CLIP, in the figures that papers about it report.

    Figures are over distinct images and distinct texts: a caption that many images share counts once.

    Args:
        samples: at most so many images and so many texts, evenly spread; costs grow with their product.
        folds: of the cross-validated regression that tells images from texts; 5 is five splits of 80 to 20.
        drawn: points of each kind in the scatter.

    Raises:
        ClipxError: a number out of range.

    Source: Liang et al. 2022; Fahim, Murphy and Fyshe 2024; Wang and Isola 2020; Chen et al. 2024.
    """

    needs = ("texts",)
    bank = "image"

    def __init__(self, samples: int = 5000, folds: int = 5, drawn: int = 600) -> None:
        check_number("samples", samples, least=4)
        check_number("folds", folds, least=2)
        check_number("drawn", drawn, least=1)
        self.samples, self.folds, self.drawn = samples, folds, drawn

    def __call__(self, material: Material) -> Result:
        """Measure the gap between ``material.measured`` and ``material.text``.

        Raises:
            ClipxError: fewer than two images or texts, or no text at all.
        """
        if material.text is None or material.pairs is None or not len(material.pairs):
            raise ClipxError("no image has a text: there is no gap to measure", hint="data with captions")
        images, texts, pairs = thinned(
            material.measured.image.double(), material.text.double(), material.pairs, self.samples
        )
        if len(images) < 2 or len(texts) < 2:
            raise ClipxError(
                f"{len(images)} image and {len(texts)} text: there is no gap to measure", hint="two or more"
            )
        seed = material.seed
        estimates = gap_estimates(images, texts, pairs, seed=seed)
        estimates["separability"] = separability(images, texts, folds=self.folds, seed=seed)
        margins = geometry.margins(images, texts, pairs)
        found = retrieval(_cosines, images, texts, pairs.numpy(), seed=seed)
        estimates |= {name: found[name] for name in RECALLS}
        centroids = images.mean(0), texts.mean(0)
        details = {
            "samples": len(images),
            "texts": len(texts),
            "pairs": len(pairs),
            "logit_scale": material.logit_scale,
            "centroid_cosine": float(torch.cosine_similarity(*centroids, dim=0)),
            "margin_5th_percentile": float(margins.quantile(0.05)),
        }
        spectra = {"images": geometry.explained_variance(images), "texts": geometry.explained_variance(texts)}
        from clipx.reports.gap_figure import gap

        figure = gap(
            *(rows[_evenly(len(rows), self.drawn)].numpy() for rows in (images, texts)),
            centroids=tuple(each.numpy() for each in centroids),
            cosines={
                "image and its text": geometry.paired_cosines(images, texts, pairs).numpy(),
                "image and another text": _unpaired(images, texts, pairs, seed),
                "two images": _between(images, seed),
                "two texts": _between(texts, seed),
            },
            spectra={name: each.numpy() for name, each in spectra.items()},
            title=material.title,
        )
        columns = ["direction", *spectra]
        rows = [
            [place + 1, *(_at(each, place) for each in spectra.values())]
            for place in range(len(centroids[0]))
        ]
        return Result(
            estimates, details, {"explained_variance": Table(columns, rows)}, {"modality_gap": figure}
        )


def gap_estimates(images: Tensor, texts: Tensor, pairs: Tensor, *, seed: int = 0) -> dict[str, Estimate]:
    """The figures of the gap that need nothing but the embeddings, each with its interval.

    Args:
        images: unit rows ``[M, D]``, two or more; float64 for figures that do not depend on their order.
        texts: unit rows ``[T, D]``, two or more.
        pairs: int64 ``[P, 2]`` of (image, text) that belong together.
        seed: of the bootstrap intervals.
    """
    ranked = pairs[_evenly(len(pairs), _RANKED)]
    in_modal, cross_modal = geometry.rank_agreement(images, texts, ranked)
    return {
        "centroid_distance": _centroid_distance(images, texts, seed),
        "alignment": mean(geometry.alignment(images, texts, pairs).numpy(), seed=seed),
        "uniformity_image": _delta(*geometry.uniformity(images)),
        "uniformity_text": _delta(*geometry.uniformity(texts)),
        "cross_uniformity": _delta(*geometry.cross_uniformity(images, texts, pairs)),
        "effective_rank_image": _bare(geometry.effective_rank(images)),
        "effective_rank_text": _bare(geometry.effective_rank(texts)),
        "paired_cosine": mean(geometry.paired_cosines(images, texts, pairs).numpy(), seed=seed),
        "unpaired_cosine": _bare(geometry.unpaired_cosine(images, texts, pairs)),
        "margin": mean(geometry.margins(images, texts, pairs).numpy(), seed=seed),
        "rank_agreement": mean(in_modal.numpy(), seed=seed),
        "cross_rank_agreement": mean(cross_modal.numpy(), seed=seed),
    }


def thinned(images: Tensor, texts: Tensor, pairs: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most so many images and texts that belong to one another, evenly spread, and their pairs.

    Args:
        images: ``[M, D]``.
        texts: ``[T, D]``.
        pairs: int64 ``[P, 2]``.
        samples: of each kind.

    Returns:
        Images, texts, and pairs renumbered; what is in no pair is left out.
    """
    for side in (0, 1):
        found = pairs[:, side].unique()
        kept = found[_evenly(len(found), samples)]
        pairs = pairs[torch.isin(pairs[:, side], kept)]
    rows, columns = pairs[:, 0].unique(), pairs[:, 1].unique()
    renumbered = torch.stack(
        [
            torch.searchsorted(rows, pairs[:, 0].contiguous()),
            torch.searchsorted(columns, pairs[:, 1].contiguous()),
        ],
        1,
    )
    return images[rows], texts[columns], renumbered


def separability(images: Tensor, texts: Tensor, *, folds: int = 5, seed: int = 0) -> Estimate:
    """How often a linear classifier tells a held-out image from a held-out text: 0.5 no gap, 1 two clouds.

    Each kind counts half, however many there are of it: rows of the rarer one are learnt from as often as it
    takes. Every row is held out once.

    Args:
        images: ``[M, D]``.
        texts: ``[T, D]``.
        folds: parts of which each is held out in turn; fewer where there are fewer rows of a kind.
        seed: of the shuffle.

    Raises:
        ClipxError: fewer than two rows of a kind.
    """
    sizes = [len(images), len(texts)]
    folds = min(folds, *sizes)
    if folds < 2:
        raise ClipxError("separability needs two images and two texts or more")
    generator = torch.Generator().manual_seed(seed)
    fold = torch.cat([torch.randperm(size, generator=generator) % folds for size in sizes])
    rows, kind = torch.cat([images, texts]), torch.tensor([0, 1]).repeat_interleave(torch.tensor(sizes))
    right = torch.zeros(2)
    for place in range(folds):
        held = fold == place
        learnt = [(~held & (kind == each)).nonzero()[:, 0] for each in (0, 1)]
        most = max(map(len, learnt))
        balanced = torch.cat([places[torch.arange(most) % len(places)] for places in learnt])
        fitted = LogisticPath(rows[balanced], kind[balanced], 2).fit(_SEPARATES_AT)
        hits = fitted.logits(rows[held]).argmax(1) == kind[held]
        right += torch.bincount(kind[held][hits], minlength=2)
    return mean_of_proportions(right.long().numpy(), np.array(sizes))


def _centroid_distance(images: Tensor, texts: Tensor, seed: int) -> Estimate:
    value = float(geometry.centroid_distance(images, texts))
    means = [_drawn_means(images, seed), _drawn_means(texts, seed + 1)]
    draws = np.linalg.norm(means[0] - means[1], axis=1)
    return percentile_interval(value, draws)


def _drawn_means(rows: Tensor, seed: int) -> NDArray[np.float64]:
    def weighted(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weights / len(rows)) @ rows.numpy()

    return resampled(weighted, len(rows), seed=seed)


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    return images @ texts.T


def _delta(value: Tensor, error: Tensor) -> Estimate:
    half = Z * float(error)
    return Estimate(float(value), float(value) - half, float(value) + half)


def _bare(value: Tensor) -> Estimate:
    return Estimate(float(value), float(value), float(value))


def _evenly(count: int, most: int) -> Tensor:
    kept = min(count, most)
    return torch.arange(kept) * count // max(kept, 1)


def _between(rows: Tensor, seed: int, draws: int = 4000) -> NDArray[np.float64]:
    """Cosines of random pairs of different rows."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(rows), (draws,), generator=generator)
    second = (first + torch.randint(1, len(rows), (draws,), generator=generator)) % len(rows)
    return (rows[first] * rows[second]).sum(1).numpy()


def _unpaired(
    images: Tensor, texts: Tensor, pairs: Tensor, seed: int, draws: int = 4000
) -> NDArray[np.float64]:
    """Cosines of random images and texts that do not belong together."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(images), (draws,), generator=generator)
    second = torch.randint(len(texts), (draws,), generator=generator)
    own = torch.isin(first * len(texts) + second, pairs[:, 0] * len(texts) + pairs[:, 1])
    return (images[first] * texts[second]).sum(1)[~own].numpy()


def _at(values: Tensor, place: int) -> float | None:
    return float(values[place]) if place < len(values) else None
