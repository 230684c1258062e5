"""Figures of ``robustness-suite``: the baselines' line, reliability diagrams, scores inside and outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipx.reports.figures import COLOURS, FAINT, GRID, INK, shortened, styled
from clipx.reports.probe_figures import above, horizontal
from clipx.tasks.calibration import Reliability
from clipx.tasks.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
_TICKS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_STYLES = ("-", "--", ":")
_ROOM = 0.35


def effective(
    models: Mapping[str, tuple[Floats, Floats, float, float]],
    lines: Mapping[str, Any],
    robustness: Mapping[str, Estimate],
    accuracies: Mapping[str, tuple[Estimate, Estimate]],
    *,
    title: str = "",
) -> Figure:
    """Accuracy under every shift against clean accuracy, top-1 by set, and effective robustness.

    Args:
        models: shift -> clean and shifted accuracies of the baselines, then the two of the zero-shot one.
        lines: shift -> a ``clipx.probes.shift_line.Line`` through its baselines.
        robustness: shift -> how far the zero-shot classifier lies above its line.
        accuracies: set of images -> top-1 of the zero-shot classifier, and of the probe.
        title: above.
    """
    from matplotlib.figure import Figure

    from clipx.probes.shift_line import linked, unlinked

    rows = max(len(accuracies), 4)
    figure = Figure(figsize=(13.2, 2.2 + 0.42 * rows), layout="constrained")
    scatter, tops, rho = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    for axes in (scatter, tops, rho):
        styled(axes)
    link = next(iter(lines.values())).link
    seen: list[float] = []
    for place, (name, (x, y, clean, shifted)) in enumerate(models.items()):
        colour = COLOURS[place % len(COLOURS)]
        style = _STYLES[place // len(COLOURS) % len(_STYLES)]
        inside = np.clip([clean, shifted], *_ends())
        ends = linked([min(x.min(), inside[0]), max(x.max(), inside[0])], link)
        along = np.linspace(float(ends[0]), float(ends[1]), 50)
        scatter.plot(
            along,
            linked(np.clip(lines[name].expected(unlinked(along, link)), *_ends()), link),
            color=colour,
            linewidth=1.2,
            linestyle=style,
            alpha=0.8,
        )
        points = np.clip([x, y], *_ends())
        scatter.scatter(*linked(points, link), s=16, color=colour, alpha=0.75, linewidths=0)
        scatter.scatter(
            *linked(inside, link),
            s=130,
            marker="*",
            color=colour,
            edgecolors="white",
            linewidths=0.8,
            zorder=5,
            label=shortened(name, 18),
        )
        seen += [*points.flat, *inside]
    low, high = linked(min(seen), link) - _ROOM, linked(max(seen), link) + _ROOM
    scatter.plot([low, high], [low, high], color=FAINT, linewidth=0.9, linestyle=(0, (1, 3)))
    ticks = [tick for tick in _TICKS if low <= linked(tick, link) <= high]
    for axis in (scatter.xaxis, scatter.yaxis):
        axis.set_ticks(linked(ticks, link), [f"{tick:g}" for tick in ticks])
    scatter.set_xlim(low, high)
    scatter.set_ylim(low, high)
    scatter.tick_params(axis="x", labelsize=8)
    scatter.grid(color=GRID, linewidth=0.8)
    scatter.set_xlabel(f"top-1 without the shift ({link} scale)")
    scatter.set_ylabel("top-1 under the shift")
    scatter.set_title("stars: zero-shot; points and lines: baselines", loc="left", fontsize=9, color=FAINT)
    scatter.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=3,
        handletextpad=0.2,
        columnspacing=1.0,
    )
    _pairs(tops, accuracies)
    tops.set_title("top-1", loc="left", fontsize=9, color=FAINT)
    horizontal(rho, robustness)
    rho.axvline(0, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    rho.set_title("effective robustness of zero-shot", loc="left", fontsize=9, color=FAINT)
    above(figure, title)
    return figure


def reliabilities(diagrams: Mapping[str, Reliability], *, title: str = "") -> Figure:
    """A reliability diagram a panel: accuracy against confidence, and how many images have it.

    Args:
        diagrams: by what they are of.
        title: above.
    """
    from matplotlib.figure import Figure

    from clipx.tasks.calibration import expected_error

    figure = Figure(figsize=(3.7 * len(diagrams), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(diagrams), sharey=True))
    for place, (axes, (name, each)) in enumerate(zip(panels, diagrams.items(), strict=True)):
        styled(axes)
        colour = COLOURS[place % len(COLOURS)]
        held = each.count > 0
        x, y = each.confidence[held].numpy(), each.accuracy[held].numpy()
        bins = len(each.count)
        share = (each.count / each.count.sum()).numpy()
        axes.bar((np.arange(bins) + 0.5) / bins, share, 0.92 / bins, color=GRID, label="share of the images")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        axes.vlines(x, np.minimum(x, y), np.maximum(x, y), color=colour, alpha=0.35, linewidth=3)
        axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.5, label="accuracy")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence")
        axes.set_title(f"{name}: ECE {expected_error(each):.3f}", loc="left", fontsize=9, color=FAINT)
    panels[0].set_ylabel("accuracy, and share of the images")
    above(figure, title)
    return figure


def outside(
    scores: Mapping[str, tuple[Floats, Floats]],
    aurocs: Mapping[str, Mapping[str, Estimate]],
    *,
    score: str,
    title: str = "",
) -> Figure:
    """For all that is outside: the score inside and outside, and the AUROC of every score.

    Args:
        scores: by what is outside, the chosen score of images inside ``[N]`` and outside ``[M]``.
        aurocs: by the same, score -> AUROC.
        score: name of the chosen one.
        title: above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 3.9 * len(scores)), layout="constrained")
    panels = figure.subplots(len(scores), 2, squeeze=False)
    for (density, bars), (name, (inside, other)) in zip(panels, scores.items(), strict=True):
        styled(density)
        styled(bars)
        both = np.concatenate([inside, other])
        edges = np.linspace(both.min(), both.max() + 1e-12, 41)
        for values, colour, label in ((inside, COLOURS[0], "known classes"), (other, COLOURS[1], name)):
            heights, _ = np.histogram(values, edges)
            density.stairs(heights / len(values), edges, color=colour, linewidth=1.5, label=label)
            density.stairs(heights / len(values), edges, color=colour, alpha=0.15, fill=True)
        cut = np.quantile(inside, 0.05)
        density.axvline(cut, color=FAINT, linewidth=1, linestyle="--")
        density.set_ylim(bottom=0)
        density.locator_params(axis="x", nbins=6)
        density.set_xlabel(f"{score}; right of the dashed line are 95% of the known")
        density.set_ylabel("share of the images")
        density.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        density.set_title(f"{name}", loc="left", fontsize=9, color=FAINT)
        horizontal(bars, aurocs[name])
        bars.axvline(0.5, color=FAINT, linewidth=1, linestyle="--", zorder=0)
        bars.set_title("AUROC", loc="left", fontsize=9, color=FAINT)
    above(figure, title)
    return figure


def _ends() -> tuple[float, float]:
    return _TICKS[0] / 2, 1 - _TICKS[0] / 2


def _pairs(axes: Any, accuracies: Mapping[str, tuple[Estimate, Estimate]]) -> None:
    for side, (label, marker) in enumerate((("zero-shot", "o"), ("probe of all images", "s"))):
        for place, pair in enumerate(accuracies.values()):
            each, height = pair[side], place + (side - 0.5) * 0.26
            axes.plot([each.low, each.high], [height, height], color=COLOURS[side], linewidth=1.4)
            axes.plot(
                [each.value],
                [height],
                marker,
                color=COLOURS[side],
                markersize=5.5,
                label=label if place == 0 else None,
            )
    axes.set_yticks(np.arange(len(accuracies)), [shortened(name, 18) for name in accuracies])
    axes.set_ylim(len(accuracies) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=2,
        handletextpad=0.2,
    )
