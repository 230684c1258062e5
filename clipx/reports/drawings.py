"""Which figures a suite gets: those that its grid and its cells have something to say in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipx.reports.class_map import class_map, read_recalls
from clipx.reports.cost_figure import cost, pareto
from clipx.reports.rank_figures import critical_difference, enough_blocks, mean_ranks
from clipx.reports.significance import ALPHA
from clipx.reports.suite_figures import MOST_BANDS, method_styles, panels, points
from clipx.reports.summary import Section, Summary, axis_values, label, p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipx.reports.suite import Row, SuiteTable

_MOST_PANELS = 12
_MOST_MAPS = 12


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its file, what it shows in one or two sentences, and whether it is a wide one."""

    name: str
    figure: Figure
    caption: str
    wide: bool = False


def drawings(table: SuiteTable, summary: Summary, folder: Path) -> Iterator[Drawing]:
    """The figures of a suite, one after another, so that one stands in memory at a time.

    Args:
        table: the cells.
        summary: of the same table.
        folder: that the runs of the cells are relative to; their ``per_class.csv`` are read.
    """
    styles = method_styles(list(dict.fromkeys(row.method for row in table.rows)), summary.baseline)
    first = summary.sections[0]
    across = axis_values(table.rows, summary.across) if summary.across else []
    shown = [(place, float(value)) for place, value in enumerate(across) if isinstance(value, int | float)]
    if len(shown) > 1:
        yield _curves("curves", summary, [first], shown, styles)
        if 2 < len(summary.sections) <= _MOST_PANELS + 1:
            yield _curves("curves_each", summary, list(summary.sections[1:]), shown, styles)
    else:
        yield from _points(summary, first, styles)
    if summary.ranks is not None and len(summary.ranks.mean) > 2:
        yield _ranks(summary)
    measured = {
        method: (summary.seconds[method], value)
        for method in summary.methods
        if summary.seconds.get(method, 0) > 0 and (value := _overall(first, method)) is not None
    }
    if len(measured) > 1:
        figure = cost(measured, ylabel=summary.metric, lower_is_better=summary.lower, styles=styles)
        about = "Median time of a cell against the metric"
        front = pareto(measured, lower_is_better=summary.lower)
        about += "; nothing beats the methods on the dashed line in both." if len(front) > 1 else "."
        yield Drawing("cost", figure, about)
    yield from _class_maps(table, summary, folder)


def _curves(
    name: str,
    summary: Summary,
    sections: Sequence[Section],
    shown: Sequence[tuple[int, float]],
    styles: dict[str, dict[str, Any]],
) -> Drawing:
    parts = {
        section.title: {
            method: [section.rows[method][place].estimate for place, _ in shown] for method in summary.methods
        }
        for section in sections
    }
    values = [value for _, value in shown]
    figure = panels(parts, values, xlabel=summary.across or "", ylabel=summary.metric, styles=styles)
    over = f" ({sections[0].title})" if len(sections) == 1 and sections[0].title else ""
    banded = len(summary.methods) <= MOST_BANDS
    intervals = "with 95% intervals" if banded else "the intervals are in the table"
    return Drawing(name, figure, f"{summary.metric} over {summary.across}{over}, {intervals}.", wide=True)


def _points(summary: Summary, section: Section, styles: dict[str, dict[str, Any]]) -> Iterator[Drawing]:
    estimates = {
        method: each for method in summary.methods if (each := section.rows[method][-1].estimate) is not None
    }
    if estimates:
        figure = points(estimates, xlabel=summary.metric, baseline=summary.baseline, styles=styles)
        about = f"{summary.metric} of every method, with 95% intervals"
        about += f"; the dashed line is {summary.baseline}." if summary.baseline in estimates else "."
        yield Drawing("methods", figure, about)


def _ranks(summary: Summary) -> Drawing:
    ranks = summary.ranks
    assert ranks is not None
    about = f"Mean rank over {ranks.blocks} block{'s' * (ranks.blocks != 1)} of conditions."
    if ranks.p is not None:
        about += f" Friedman's test that all methods are alike: p = {p_value(ranks.p)}.".replace("= <", "< ")
    if summary.left_out:
        about += f" Left out, for cells are lost: {', '.join(summary.left_out)}."
    if enough_blocks(ranks):
        about += " Nemenyi's test does not tell apart what a bar joins"
        about += f" (level {ALPHA:.2g})."
        return Drawing("ranks", critical_difference(ranks), about)
    return Drawing("ranks", mean_ranks(ranks), about)


def _overall(section: Section, method: str) -> float | None:
    estimate = section.rows[method][-1].estimate
    return None if estimate is None else estimate.value


def _class_maps(table: SuiteTable, summary: Summary, folder: Path) -> Iterator[Drawing]:
    """One map a set of classes: cells of other data have other classes."""
    groups: dict[tuple[str, ...], dict[str, list[tuple[Row, dict[str, float]]]]] = {}
    for row in table.rows:
        if row.status == "completed" and row.run is not None:
            recalls = read_recalls(folder / row.run / "per_class.csv")
            if recalls:
                groups.setdefault(tuple(recalls), {}).setdefault(row.method, []).append((row, recalls))
    for place, (classes, cells) in enumerate(list(groups.items())[:_MOST_MAPS]):
        baseline = summary.baseline if summary.baseline in cells else None
        methods = [method for method in summary.methods if method in cells and method != baseline]
        if not methods:
            continue
        values = np.array([_recalls(cells, method, baseline, classes) for method in methods])
        if not np.isfinite(values).any():
            continue
        rows = [row for each in cells.values() for row, _ in each]
        shared = [
            f"{axis}={label(value)}"
            for axis, value in rows[0].axes.items()
            if len(groups) > 1 and all(label(row.axes.get(axis)) == label(value) for row in rows)
        ]
        about = "Recall of every class"
        about += f" less that of {baseline} in the same cells" if baseline else ""
        about += f" ({', '.join(shared)})." if shared else ", mean over the cells."
        figure = class_map(values, methods, classes, difference_to=baseline)
        yield Drawing("classes" if place == 0 else f"classes_{place + 1}", figure, about, wide=True)


def _recalls(
    cells: dict[str, list[tuple[Row, dict[str, float]]]],
    method: str,
    baseline: str | None,
    classes: Sequence[str],
) -> NDArray[np.float64]:
    """Mean recall by class ``[C]``; with a baseline, mean difference over the cells that both have."""

    def key(row: Row) -> tuple[str, ...]:
        return (label(row.seed), *sorted(f"{axis}={label(value)}" for axis, value in row.axes.items()))

    own = {key(row): np.array([recalls[name] for name in classes]) for row, recalls in cells[method]}
    if baseline is None:
        return np.mean(list(own.values()), axis=0)
    theirs = {key(row): np.array([recalls[name] for name in classes]) for row, recalls in cells[baseline]}
    both = [own[each] - theirs[each] for each in own if each in theirs]
    return np.mean(both, axis=0) if both else np.full(len(classes), np.nan)
