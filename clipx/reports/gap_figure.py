"""The modality gap in one figure: both clouds, their cosines, how many directions they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipx.reports.figures import COLOURS, FAINT, GRID, INK, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]


def gap(
    images: Floats,
    texts: Floats,
    *,
    centroids: tuple[Floats, ...],
    cosines: Mapping[str, Floats],
    spectra: Mapping[str, Floats],
    title: str = "",
) -> Figure:
    """Three panels: the clouds in their first two common directions, cosines by kind, explained variance.

    Args:
        images, texts: rows ``[N, D]`` and ``[T, D]`` to draw.
        centroids: the mean of all images and of all texts, ``[D]`` each.
        cosines: by kind of pair, ``[K]`` each.
        spectra: by kind of row, share of the variance in the first 1, 2, ... directions.
        title: above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.4, 3.9), layout="constrained")
    clouds, density, variance = figure.subplots(1, 3)
    for axes in (clouds, density, variance):
        styled(axes)
    _clouds(clouds, images, texts, centroids)
    edges = np.linspace(min(each.min() for each in cosines.values()), 1.0, 60)
    for place, (name, values) in enumerate(cosines.items()):
        heights, _ = np.histogram(values, edges, density=True)
        middles = (edges[1:] + edges[:-1]) / 2
        density.plot(middles, heights, color=COLOURS[place], linewidth=1.6, label=name)
        if place < 2:
            density.fill_between(middles, heights, color=COLOURS[place], alpha=0.15, linewidth=0)
    density.set_ylim(bottom=0)
    density.locator_params(axis="x", nbins=6)
    density.set_xlabel("cosine")
    density.set_ylabel("density")
    for place, (name, shares) in enumerate(spectra.items()):
        variance.plot(np.arange(1, len(shares) + 1), shares, color=COLOURS[place], linewidth=1.8, label=name)
    variance.set_ylim(0, 1.02)
    variance.set_xlabel("principal directions")
    variance.set_ylabel("share of the variance")
    variance.grid(color=GRID, linewidth=0.8)
    # Below the panels: inside them a legend hides what it names.
    for axes in (clouds, density, variance):
        axes.legend(
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            ncols=2,
            handlelength=1.2,
        )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    return figure


def _clouds(axes: Axes, images: Floats, texts: Floats, centroids: tuple[Floats, ...]) -> None:
    everything = np.concatenate([images, texts])
    # Each kind counts half, so that the larger one does not choose the directions alone.
    middle = (images.mean(0) + texts.mean(0)) / 2
    weights = np.repeat([len(images), len(texts)], [len(images), len(texts)]) ** -0.5
    _, values, directions = np.linalg.svd((everything - middle) * weights[:, None], full_matrices=False)
    shares = values**2 / max(float((values**2).sum()), np.finfo(float).tiny)
    plane = directions[:2]
    for rows, colour, name in ((images, COLOURS[0], "images"), (texts, COLOURS[1], "texts")):
        x, y = plane @ (rows - middle).T
        axes.scatter(x, y, s=7, color=colour, alpha=0.45, linewidths=0, label=name)
    ends = np.array([plane @ (each - middle) for each in centroids])
    axes.plot(ends[:, 0], ends[:, 1], color=INK, linewidth=1.4, zorder=4)
    axes.scatter(
        ends[:, 0], ends[:, 1], s=42, color=COLOURS[:2], edgecolors="white", linewidths=1.2, zorder=5
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"direction 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"direction 2 ({shares[1]:.0%})")
    distance = float(np.linalg.norm(centroids[0] - centroids[1]))
    axes.set_title(f"centroids {distance:.2f} apart", loc="left", fontsize=9, color=FAINT)
