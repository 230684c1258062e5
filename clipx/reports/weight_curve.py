"""What lies between two models: accuracy over the share of the second, and one accuracy against the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipx.errors import ClipxError
from clipx.reports.figures import COLOURS, FAINT, GRID, INK, blank, name_ends, shortened, styled, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKED = {0.0: (-6, 6), 0.5: (-6, -14), 1.0: (6, -14)}
"""Where an alpha is written, in points from its place: apart also where the places are close."""
_CHOSEN = (6, 6)


def weight_curve(
    alphas: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    against: tuple[str, str] | None = None,
    chosen: float | None = None,
    metric: str = "top1",
    title: str = "",
) -> Figure:
    """Draw metrics over alpha; beside it, where ``against`` names two of them, one against the other.

    Args:
        alphas: shares of the second model in [0, 1], ascending.
        series: name -> its metric at every alpha, in [0, 1].
        against: the names on the horizontal and the vertical axis of the second panel; the straight line
            between its ends is what mixing the two models by lot would give.
        chosen: the alpha of the model that is kept.
        metric: what is drawn.
        title: above.

    Raises:
        ClipxError: there is nothing to draw.

    Source: Wortsman et al. 2022 (WiSE-FT), figure 1.
    """
    if not len(alphas) or not series:
        raise ClipxError("there are no values to draw")
    if against is None:
        figure, left = blank(6.4, 3.8)
    else:
        from matplotlib.figure import Figure as Empty

        figure = Empty(figsize=(10.4, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes in (left, right):
            styled(axes)
        x, y = (np.asarray(series[name], dtype=np.float64) for name in against)
        _against(right, alphas, x, y, chosen)
        right.set_xlabel(f"{metric}, {shortened(against[0], 40)}")
        right.set_ylabel(f"{metric}, {shortened(against[1], 40)}")
    ends = []
    for place, (name, values) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        left.plot(alphas, values, color=colour, linewidth=1.8, marker="o", markersize=3.5)
        ends.append((name, float(values[-1]), colour))
    if chosen is not None:
        left.axvline(chosen, color=FAINT, linewidth=1.0, linestyle=(0, (3, 3)), zorder=0)
    left.grid(color=GRID, linewidth=0.8)
    left.margins(x=0.02)
    left.set_xlabel("alpha: share of the fine-tuned weights")
    left.set_ylabel(metric)
    name_ends(left, ends)
    titled(left, title)
    return figure


def _against(axes: Axes, alphas: Sequence[float], x: np.ndarray, y: np.ndarray, chosen: float | None) -> None:
    axes.plot(x[[0, -1]], y[[0, -1]], color=FAINT, linewidth=1.0, linestyle=(0, (3, 3)), zorder=1)
    axes.plot(x, y, color=COLOURS[0], linewidth=1.8, marker="o", markersize=3.5, zorder=2)
    for alpha, across, up in zip(alphas, x, y, strict=True):
        if alpha == chosen:
            axes.plot([across], [up], marker="o", markersize=9, fillstyle="none", color=INK, zorder=3)
        away = _CHOSEN if alpha == chosen else _MARKED.get(alpha)
        if away is not None:
            axes.annotate(
                f"{alpha:g}",
                (across, up),
                xytext=away,
                textcoords="offset points",
                ha="right" if away[0] < 0 else "left",
                fontsize=8.5,
                color=INK,
            )
    axes.margins(0.08)
    axes.grid(color=GRID, linewidth=0.8)
