"""Class by class: where each method gains and loses, as a heat map."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipx.reports.figures import FAINT, blank, shortened, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CLASSES = 50
_WRITTEN = 12
"""Classes up to which every cell has its number."""


def read_recalls(path: Path) -> dict[str, float]:
    """Recall in [0, 1] by class, of a run's ``per_class.csv``; empty where there is no such file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    found = {}
    for row in rows:
        name, recall = row.get("class"), row.get("recall")
        if name is not None and recall:
            found[name] = float(recall)
    return found


def class_map(
    values: NDArray[np.float64],
    methods: Sequence[str],
    classes: Sequence[str],
    *,
    difference_to: str | None,
    title: str = "",
) -> Figure:
    """Recall of every class under every method, or how far it is from the baseline's.

    Args:
        values: ``[methods, classes]``; NaN where nothing is known. Of more than 50 classes, those are drawn
            on which the methods differ most.
        methods, classes: names.
        difference_to: the baseline whose recall was taken off; None for plain recalls.
        title: above.
    """

    spread = np.nan_to_num(np.nanmax(values, 0) - np.nanmin(values, 0) + np.abs(np.nanmean(values, 0)))
    chosen = np.sort(np.argsort(-spread, kind="stable")[:_MOST_CLASSES])
    values, names = values[:, chosen], [classes[place] for place in chosen]
    width = float(np.clip(2.6 + 0.27 * len(names), 5.0, 14.5))
    figure, axes = blank(width + 1.2, 1.7 + 0.3 * len(methods))
    if difference_to is None:
        picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    else:
        limit = max(0.05, float(np.nanmax(np.abs(values))))
        picture = axes.imshow(
            values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
    if len(names) <= _WRITTEN:
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            deep = abs(value) > 0.6 * (1 if difference_to is None else limit)
            text = f"{value:.2f}" if difference_to is None else f"{value:+.2f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=7.5, color="white" if deep else "black"
            )
    axes.set_xticks(range(len(names)), [shortened(name, 22) for name in names], rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(methods)), [shortened(name, 28) for name in methods], fontsize=8.5)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(methods)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    bar.set_label("recall" if difference_to is None else f"recall − {difference_to}", fontsize=8, color=FAINT)
    if len(chosen) < len(classes):
        axes.set_xlabel(f"the {len(chosen)} of {len(classes)} classes that differ most")
    titled(axes, title)
    return figure
