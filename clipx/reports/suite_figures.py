"""The methods of a suite against each other: curves over an axis, and side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipx.reports.figures import COLOURS, FAINT, GRID, INK, blank, shortened, styled, titled
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLOURS = (*COLOURS[:5], "#14828f", "#8a6a2f")
"""The house's colours without its grey, which is the baseline's, and two more."""

HALO = "#fefefe"
"""Around names that lie on lines: the colour of the page, a shade off white so that a page can tell."""

_BASELINE = {"color": FAINT, "linestyle": (0, (4, 2.5)), "marker": "o"}
_STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = "osD^vP"
_MANY = 5
"""Methods above which bands must be fainter, or they hide each other."""
MOST_BANDS = 8
"""Methods above which bands are left out: so many on top of each other are one grey cloud."""


def method_styles(methods: Sequence[str], baseline: str | None) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of every method, the same in all figures: grey for the baseline, 28 others."""
    others = [method for method in methods if method != baseline]
    found: dict[str, dict[str, Any]] = {m: dict(_BASELINE) for m in methods if m == baseline}
    for place, method in enumerate(others):
        turn = place // len(METHOD_COLOURS)
        found[method] = {
            "color": METHOD_COLOURS[place % len(METHOD_COLOURS)],
            "linestyle": _STYLES[turn % len(_STYLES)],
            "marker": _MARKERS[(place + turn) % len(_MARKERS)],
        }
    return found


def panels(
    parts: Mapping[str, Mapping[str, Sequence[Estimate | None]]],
    x: Sequence[float],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    styles: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """The metric over an axis, one line a method, up to ``MOST_BANDS`` of them with bands; one panel a part.

    Args:
        parts: panel title -> method -> one estimate a value of ``x``, None for a gap.
        x: rising, spaced by their logarithms where they are positive and span a factor of 8 or more.
        xlabel, ylabel, title: in words.
        styles: of ``method_styles``.
    """
    from matplotlib.figure import Figure

    columns = 1 if len(parts) == 1 else min(3, len(parts))
    lines = -(-len(parts) // columns)
    methods = list(dict.fromkeys(method for part in parts.values() for method in part))
    wide = (7.6, 4.4) if columns == 1 else (3.2 * columns, 2.7 * lines)
    figure = Figure(figsize=(wide[0] + 1.6, wide[1]), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(parts) :]:
        axes.set_visible(False)
    for axes, (name, part) in zip(grid.flat, parts.items(), strict=False):
        styled(axes)
        shade = 0.13 if len(part) <= _MANY else 0.06 if len(part) <= MOST_BANDS else 0.0
        for method, estimates in part.items():
            _line(axes, x, estimates, styles[method], method, shade)
        axes.grid(color=GRID, linewidth=0.8)
        if len(parts) > 1:
            axes.set_title(shortened(name, 34), loc="left", fontsize=9, color=INK)
        _scale(axes, x)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    for axes in grid.flat[max(0, len(parts) - columns) : len(parts)]:
        axes.set_xlabel(xlabel)
        axes.tick_params(labelbottom=True)
    handles = {h.get_label(): h for axes in grid.flat for h in axes.lines}
    figure.legend(
        [handles[method] for method in methods if method in handles],
        [shortened(method, 28) for method in methods if method in handles],
        loc="outside right upper",
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=2.6,
    )
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    return figure


def _line(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate | None],
    look: Mapping[str, Any],
    name: str,
    shade: float,
) -> None:
    there = [(at, each) for at, each in zip(x, estimates, strict=True) if each is not None]
    if not there:
        return
    at = np.array([float(each[0]) for each in there])
    if shade:
        low, high = (np.array([getattr(each[1], end) for each in there]) for end in ("low", "high"))
        axes.fill_between(at, low, high, color=look["color"], alpha=shade, linewidth=0)
    values = [each.value for _, each in there]
    axes.plot(at, values, linewidth=1.7, markersize=4, markeredgewidth=0, label=name, **look)


def _scale(axes: Axes, x: Sequence[float]) -> None:
    if min(x) > 0 and max(x) / min(x) >= 8:
        axes.set_xscale("log")
    axes.set_xticks(list(x), [f"{value:g}" for value in x])
    axes.minorticks_off()


def points(
    estimates: Mapping[str, Estimate],
    *,
    xlabel: str,
    title: str = "",
    baseline: str | None = None,
    styles: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """One point a method with its interval, and the baseline as a line down through them.

    Args:
        estimates: by method, from the top.
        xlabel: the metric.
        title: above.
        baseline: a method of them.
        styles: of ``method_styles``.
    """
    figure, axes = blank(6.6, 1.2 + 0.33 * len(estimates))
    if baseline is not None and baseline in estimates:
        axes.axvline(estimates[baseline].value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, (method, each) in enumerate(estimates.items()):
        colour = styles[method]["color"]
        axes.plot([each.low, each.high], [place, place], color=colour, linewidth=2, alpha=0.55, zorder=2)
        axes.plot([each.value], [place], "o", color=colour, markersize=7, zorder=3)
    axes.set_yticks(range(len(estimates)), [shortened(method, 32) for method in estimates])
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlabel(xlabel)
    titled(axes, title)
    return figure
