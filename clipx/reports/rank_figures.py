"""Methods by their ranks: the critical-difference diagram, and plain mean ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipx.reports.figures import COLOURS, FAINT, GRID, INK, blank, shortened, titled
from clipx.reports.significance import Ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST_BLOCKS = 6
"""Below it Nemenyi's difference is nearly as wide as the ranks go: no diagram, only the ranks."""


def enough_blocks(ranks: Ranks) -> bool:
    """Whether a critical-difference diagram says anything: three methods or more over six blocks or more."""
    return ranks.critical_difference is not None and ranks.blocks >= _FEWEST_BLOCKS


def critical_difference(ranks: Ranks, *, title: str = "") -> Figure:
    """Mean ranks on a line, the best at the left; a bar joins those that Nemenyi's test cannot tell apart.

    Args:
        ranks: with a critical difference.
        title: above.

    Source: Demšar 2006, figure 1.
    """
    difference = ranks.critical_difference
    if difference is None:
        raise ValueError("these ranks have no critical difference")
    methods, means = list(ranks.mean), list(ranks.mean.values())
    count, left = len(methods), -(-len(methods) // 2)
    groups = cliques(means, difference)
    bars = 0.22 * len(groups) + 0.35
    rows = max(left, count - left)
    height = bars + 0.34 * rows
    figure, axes = blank(7.6, 1.1 + 0.62 * height + 0.5)
    span = count - 1
    axes.set_xlim(1 - 0.42 * span, count + 0.42 * span)
    axes.set_ylim(height, -1.0)
    axes.set_axis_off()
    axes.plot([1, count], [0, 0], color=INK, linewidth=1.2)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, -0.1], color=INK, linewidth=1.2)
        axes.text(tick, -0.16, str(tick), ha="center", va="bottom", fontsize=8.5, color=INK)
    axes.plot([1, min(1 + difference, count)], [-0.72, -0.72], color=COLOURS[1], linewidth=2)
    axes.text(
        1 + min(difference, span) / 2,
        -0.76,
        f"critical difference {difference:.2f}",
        ha="center",
        va="bottom",
        fontsize=8,
        color=FAINT,
    )
    for place, (method, mean) in enumerate(zip(methods, means, strict=True)):
        leftward = place < left
        row = place if leftward else count - 1 - place
        y = bars + 0.34 * row
        end = 1 - 0.06 * span if leftward else count + 0.06 * span
        axes.plot([mean, mean, end], [0, y, y], color=FAINT, linewidth=0.9)
        axes.annotate(
            f"{shortened(method, 26)}  {mean:.2f}",
            (end, y),
            xytext=(-4 if leftward else 4, 0),
            textcoords="offset points",
            ha="right" if leftward else "left",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    for level, (first, last) in enumerate(groups):
        y = 0.22 * (level + 1)
        axes.plot(
            [means[first] - 0.015 * span, means[last] + 0.015 * span],
            [y, y],
            color=COLOURS[0],
            linewidth=4,
            solid_capstyle="round",
        )
    titled(axes, title)
    return figure


def cliques(means: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """The widest runs (first, last) of rising mean ranks that lie within the critical difference."""
    runs: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = max(place for place in range(first, len(means)) if means[place] - means[first] < difference)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def mean_ranks(ranks: Ranks, *, title: str = "") -> Figure:
    """Mean ranks as points from the best down."""
    figure, axes = blank(6.6, 1.2 + 0.33 * len(ranks.mean))
    for place, mean in enumerate(ranks.mean.values()):
        axes.plot([1, mean], [place, place], color=GRID, linewidth=2, zorder=1)
        axes.plot([mean], [place], "o", color=COLOURS[0], markersize=7, zorder=2)
        axes.annotate(
            f"{mean:.2f}",
            (mean, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_yticks(range(len(ranks.mean)), [shortened(method, 32) for method in ranks.mean])
    axes.set_ylim(len(ranks.mean) - 0.4, -0.6)
    axes.set_xlim(0.85, len(ranks.mean) + 0.4)
    axes.set_xticks(range(1, len(ranks.mean) + 1))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlabel(f"mean rank over {ranks.blocks} block{'s' * (ranks.blocks != 1)}, 1 is the best")
    titled(axes, title)
    return figure
