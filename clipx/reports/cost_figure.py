"""What a method costs against what it brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipx.reports.figures import FAINT, GRID, blank, shortened, titled
from clipx.reports.suite_figures import HALO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def cost(
    figures: Mapping[str, tuple[float, float]],
    *,
    ylabel: str,
    lower_is_better: bool,
    title: str = "",
    styles: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Seconds a cell (logarithmic) against the metric; a line joins those that nothing beats in both.

    Args:
        figures: method -> (seconds > 0, metric).
        ylabel: the metric.
        lower_is_better: of the metric.
        title: above.
        styles: of ``suite_figures.method_styles``.
    """
    figure, axes = blank(6.6, 4.2)
    axes.set_xscale("log")
    front = pareto(figures, lower_is_better=lower_is_better)
    if len(front) > 1:
        times, values = zip(*(figures[method] for method in front), strict=True)
        axes.step(times, values, where="post", color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for method, (seconds, value) in figures.items():
        look = styles[method]
        axes.plot([seconds], [value], look["marker"], color=look["color"], markersize=8, zorder=2)
    axes.margins(x=0.1, y=0.1)
    axes.grid(color=GRID, linewidth=0.8, zorder=0)
    axes.set_xlabel("seconds a cell")
    axes.set_ylabel(ylabel)
    _seconds(axes, [seconds for seconds, _ in figures.values()])
    _label_points(axes, figures, styles)
    titled(axes, title)
    return figure


def pareto(figures: Mapping[str, tuple[float, float]], *, lower_is_better: bool) -> list[str]:
    """The methods that no other beats in both time and metric, the fastest first."""
    front, best = [], None
    for method, (_, value) in sorted(
        figures.items(), key=lambda item: (item[1][0], item[1][1] if lower_is_better else -item[1][1])
    ):
        if best is None or (value < best if lower_is_better else value > best):
            front.append(method)
            best = value
    return front


def _seconds(axes: Axes, seconds: Sequence[float]) -> None:
    low, high = min(seconds) * 0.75, max(seconds) * 1.6
    axes.set_xlim(low, high)
    ticks = [m * 10.0**e for e in range(-4, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:e}"[0] == "1"]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _label_points(
    axes: Axes, figures: Mapping[str, tuple[float, float]], styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """Name every point beside, above or below it, wherever it hides least."""
    from matplotlib.patheffects import withStroke

    points = {method: _place(axes, *at) for method, at in figures.items()}
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points.values()]
    for method, (x, y) in sorted(points.items(), key=lambda item: -item[1][1]):
        name = shortened(method, 26)
        width, height = 5.1 * len(name), 10
        choices = {
            "left": (x + 8, y - height / 2, x + 8 + width, y + height / 2),
            "right": (x - 8 - width, y - height / 2, x - 8, y + height / 2),
            "bottom": (x - width / 2, y + 7, x + width / 2, y + 7 + height),
            "top": (x - width / 2, y - 7 - height, x + width / 2, y - 7),
        }
        best = min(choices, key=lambda side: _hidden(choices[side], taken))
        taken.append(choices[best])
        offset = {"left": (8, 0), "right": (-8, 0), "bottom": (0, 7), "top": (0, -7)}[best]
        beside = best in ("left", "right")
        axes.annotate(
            name,
            figures[method],
            xytext=offset,
            textcoords="offset points",
            ha=best if beside else "center",
            va="center" if beside else best,
            fontsize=8.5,
            color=styles[method]["color"],
            path_effects=[withStroke(linewidth=3, foreground=HALO)],
            zorder=4,
        )


_WIDTH, _HEIGHT = 415.0, 250.0
"""Of the axes, in points, as the layout makes them; good enough to keep names apart."""


def _place(axes: Axes, seconds: float, value: float) -> tuple[float, float]:
    left, right = np.log(axes.get_xlim())
    low, high = axes.get_ylim()
    return float((np.log(seconds) - left) / (right - left)) * _WIDTH, (value - low) / (high - low) * _HEIGHT


def _hidden(
    box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]
) -> float:
    """Area of the box that lies on what is there, or outside the axes."""
    width, height = box[2] - box[0], box[3] - box[1]
    inside = max(0.0, min(box[2], _WIDTH) - max(box[0], 0)) * max(0.0, min(box[3], _HEIGHT) - max(box[1], 0))
    covered = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    return width * height - inside + covered
