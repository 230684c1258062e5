"""Figures in one quiet style: confusion matrix, curves over training, bars with intervals.

A function makes a matplotlib ``Figure``, without touching global state; ``save`` writes it so that nobody
sees half of a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from clipx.errors import ClipxError
from clipx.files import replacing
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#22272e", "#6b7280", "#e5e7eb"
COLOURS = ("#2563a8", "#d9822b", "#2f8f5b", "#b5406b", "#7457b5", "#5f6b7a")
"""Told apart by lightness too, for print and for colour-blind eyes."""

_DPI = 150
_LABELS = 40
_CELL_NUMBERS = 12


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, all of it or nothing; missing folders are made.

    Raises:
        ClipxError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = Path(path)
    FigureCanvasAgg(figure)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as fresh:
            figure.savefig(fresh, format="png", dpi=_DPI, facecolor="white", metadata={"Software": "clipx"})
    except OSError as problem:
        raise ClipxError(
            f"cannot write the figure {target}: {problem.strerror or problem}", hint="is there room there?"
        ) from problem
    return target


def confusion(matrix: ArrayLike, names: Sequence[str], *, title: str = "") -> Figure:
    """The confusion matrix, each row (true class) as shares of its examples; for 2 to hundreds of classes.

    Few classes get their numbers written in; many get every so-many-th name.

    Args:
        matrix: counts ``[C, C]``, rows true and columns predicted.
        names: ``[C]``.
        title: above the figure.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix, dtype=np.float64)
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.24 * size, 4.2, 10.5))
    figure, axes = blank(side + 1.1, side)
    # Mistakes are small shares: a square-root scale shows one of 2%, a linear one does not.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    step = -(-size // _LABELS)
    ticks = np.arange(0, size, step)
    shown = [shortened(names[tick]) for tick in range(0, size, step)]
    fontsize = 9 if size <= 15 else 7 if size <= 60 else 6
    upright = size <= 6 and max(len(name) for name in shown) <= 10
    axes.set_xticks(ticks, shown, rotation=0 if upright else 90, ha="center", fontsize=fontsize)
    axes.set_yticks(ticks, shown, fontsize=fontsize)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true" if step == 1 else f"true (every {_ordinal(step)} class is named)")
    if size <= _CELL_NUMBERS:
        for row, column in np.argwhere(counts > 0):
            share = shares[row, column]
            colour = "white" if share > 0.35 else INK
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=8, color=colour)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if size <= _LABELS:
        axes.set_xticks(np.arange(1, size) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, size) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.02, 0.1, 0.25, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    bar.set_label("share of the true class", fontsize=8, color=FAINT)
    titled(axes, title)
    return figure


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str = "step",
    ylabel: str = "",
    title: str = "",
    smooth: bool = False,
) -> Figure:
    """Lines against steps; each is named at its end, so that no legend has to be deciphered.

    Args:
        series: name -> (x ``[N]``, y ``[N]``); points that are not finite are left out.
        xlabel: below.
        ylabel: at the side.
        title: above.
        smooth: draw a running mean over 2% of the points, the raw values faint behind it.

    Raises:
        ClipxError: if there is nothing to draw.
    """
    drawn = {}
    for name, (x, y) in series.items():
        steps, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        kept = np.isfinite(steps) & np.isfinite(values)
        if kept.any():
            drawn[name] = steps[kept], values[kept]
    if not drawn:
        raise ClipxError("there are no values to draw")
    figure, axes = blank(6.4, 3.8)
    ends = []
    for place, (name, (steps, values)) in enumerate(drawn.items()):
        colour = COLOURS[place % len(COLOURS)]
        if smooth and len(values) >= 50:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _running_mean(values, max(3, len(values) // 50))
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=1.8,
            marker="o" if len(steps) <= 20 else None,
            markersize=3.5,
        )
        ends.append((name, float(values[-1]), colour))
    axes.grid(color=GRID, linewidth=0.8)
    axes.margins(x=0.02)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    name_ends(axes, ends)
    titled(axes, title)
    return figure


def bars(estimates: Mapping[str, Estimate], *, xlabel: str = "", title: str = "") -> Figure:
    """Horizontal bars from zero, their 95% intervals, and their values in figures.

    Args:
        estimates: name -> value and interval, drawn from the top.
        xlabel: below.
        title: above.

    Raises:
        ClipxError: if there is nothing to draw.
    """
    if not estimates:
        raise ClipxError("there are no values to draw")
    names, values = list(estimates), np.array([each.value for each in estimates.values()])
    errors = np.array([[each.value - each.low, each.high - each.value] for each in estimates.values()]).T
    figure, axes = blank(6.4, 1.1 + 0.36 * len(names))
    places = np.arange(len(names))
    axes.barh(places, values, height=0.62, color=COLOURS[0], alpha=0.85, zorder=2)
    axes.errorbar(values, places, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=3)
    right = max(each.high for each in estimates.values())
    for place, each in enumerate(estimates.values()):
        axes.annotate(
            f"{each.value:.3g}",
            (max(each.high, each.value), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_yticks(places, [shortened(name, 40) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(min(0.0, float(values.min())), right * 1.12 if right > 0 else None)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(xlabel)
    titled(axes, title)
    return figure


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches with one set of axes in the house's style."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    styled(axes)
    return figure, axes


def styled(axes: Axes) -> None:
    """Give axes the house's style: two thin spines, faint ticks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=FAINT, fontsize=9)
    axes.yaxis.label.set(color=FAINT, fontsize=9)


def titled(axes: Axes, title: str) -> None:
    """Write the title, if any, above the left end of the axes."""
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=10)


def name_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Write every line's name beside its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    place = -np.inf
    for name, y, colour in sorted(ends, key=lambda end: end[1]):
        place = max(y, place + gap)
        axes.annotate(
            f"{shortened(name, 32)}  {y:.3g}",
            (axes.get_xlim()[1], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            annotation_clip=False,
        )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window, cut off at the ends, so that a curve spans its data."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    first, last = np.maximum(here - width // 2, 0), np.minimum(here + width // 2 + 1, len(values))
    return (totals[last] - totals[first]) / (last - first)


def shortened(name: str, longest: int = 24) -> str:
    """The name, cut to so many letters, as text that matplotlib does not read as a formula."""
    cut = name if len(name) <= longest else name[: longest - 1] + "…"
    return cut.replace("$", r"\$")


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
