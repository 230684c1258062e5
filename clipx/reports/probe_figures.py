"""Figures of ``clipx probe``: what searches on validation saw, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipx.reports.figures import COLOURS, FAINT, GRID, INK, shortened, styled
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SETTINGS = {"logistic": "C, inverse L2 strength", "neighbours": "k neighbours", "sgd": "learning rate"}


def sweep_and_curve(
    sweeps: Mapping[str, Mapping[float, float]],
    *,
    curve: Mapping[float, Estimate],
    tops: Mapping[str, Estimate],
    title: str = "",
) -> Figure:
    """A panel a search, the learning curve of the first head, if it has two points, and the top-1 of all.

    Args:
        sweeps: head -> setting -> accuracy on validation.
        curve: images a class -> top-1 on test.
        tops: classifier -> top-1 on test.
        title: above.
    """
    from matplotlib.figure import Figure

    names = list(sweeps)
    drawn = len(curve) > 1
    figure = Figure(figsize=(3.3 * (len(names) + 1 + drawn), 3.5), layout="constrained")
    panels = figure.subplots(1, len(names) + 1 + drawn)
    for axes in panels:
        styled(axes)
    for place, (axes, name) in enumerate(zip(panels, names, strict=False)):
        x, y = list(sweeps[name]), list(sweeps[name].values())
        axes.plot(x, y, color=COLOURS[place], marker="o", markersize=3.5, linewidth=1.5)
        best = int(np.argmax(y))
        axes.plot(x[best], y[best], "o", color=COLOURS[place], markersize=8, markeredgecolor="white")
        axes.set_xscale("log")
        axes.set_xlabel(_SETTINGS.get(name, name))
        axes.set_title(f"{name}, on validation", loc="left", fontsize=9, color=FAINT)
        axes.grid(color=GRID, linewidth=0.8)
    if drawn:
        _learning(panels[-2], curve, tops)
        panels[-2].set_title(f"{names[0]}, top-1", loc="left", fontsize=9, color=FAINT)
    bars = panels[-1]
    horizontal(bars, tops)
    bars.set_title("top-1", loc="left", fontsize=9, color=FAINT)
    above(figure, title)
    return figure


def _learning(axes: Any, curve: Mapping[float, Estimate], tops: Mapping[str, Estimate]) -> None:
    x, estimates = list(curve), list(curve.values())
    axes.fill_between(
        x,
        [each.low for each in estimates],
        [each.high for each in estimates],
        color=COLOURS[0],
        alpha=0.15,
        lw=0,
    )
    axes.plot(x, [each.value for each in estimates], color=COLOURS[0], marker="o", markersize=3.5, lw=1.8)
    if "zero-shot" in tops:
        axes.axhline(tops["zero-shot"].value, color=FAINT, linestyle="--", linewidth=1)
        axes.annotate(
            "zero-shot",
            (1, tops["zero-shot"].value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=FAINT,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:.3g}k")
    axes.set_xlabel("images a class")
    axes.grid(color=GRID, linewidth=0.8)


def horizontal(axes: Any, estimates: Mapping[str, Estimate]) -> None:
    """Points with their 95% intervals and values, one a line, from the top."""
    places = np.arange(len(estimates))
    for place, each in enumerate(estimates.values()):
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([each.low, each.high], [place, place], color=colour, linewidth=1.4)
        axes.plot([each.value], [place], "o", color=colour, markersize=6)
        axes.annotate(
            f"{each.value:.3f}",
            (each.value, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_yticks(places, [shortened(name, 22) for name in estimates])
    axes.set_ylim(len(places) - 0.5, -0.6)
    axes.margins(x=0.18)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def above(figure: Figure, title: str) -> None:
    """Write the title, if any, above the left end of a figure of several panels."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
