"""From cells to the table of a paper: methods down, conditions across, means over seeds with intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipx.console import number
from clipx.reports.significance import Comparison, Ranks, Test, compare_methods, rank_methods
from clipx.reports.tidy import axis_names
from clipx.tasks.direction import lower_is_better
from clipx.tasks.intervals import Estimate, mean_over_seeds

if TYPE_CHECKING:
    from clipx.reports.suite import Row, SuiteTable, Value

_Condition = tuple[str, ...]
"""The value of every axis, written out: what all seeds of a method share."""


@dataclass(frozen=True)
class Entry:
    """A method under one condition.

    Attributes:
        estimate: mean over seeds and its interval; None where no cell was completed.
        cells: that were completed.
        seeds: that the mean is taken over; of one seed over several conditions there is no interval.
        failed: cells that failed.
        missing: cells that were not computed, or lack the metric.
        place: 1 for the best of its column, 2 for the second, 0 else; equal figures share a place.
        decimals: places that shares are shown with; None for four significant digits.
    """

    estimate: Estimate | None
    cells: int
    seeds: int
    failed: int
    missing: int
    place: int = 0
    decimals: int | None = None

    @property
    def figure(self) -> str:
        """The mean as it is shown; empty where there is none."""
        return "" if self.estimate is None else shown(self.estimate.value, self.decimals)

    @property
    def half(self) -> str:
        """The half width of its interval as it is shown; empty where nothing was repeated to know it by."""
        known = self.estimate is not None and (self.seeds > 1 or self.estimate.half_width > 0)
        return shown(self.estimate.half_width, self.decimals) if known else ""  # type: ignore[union-attr]

    @property
    def absence(self) -> str:
        """Why there is no estimate, in a word; empty where the method has no such cell."""
        return "failed" if self.failed else "missing" if self.missing else ""


@dataclass(frozen=True)
class Section:
    """A table: one row a method, one column a value of the column axis, perhaps their mean at the end."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class Summary:
    """The figures of a suite, ready to be set in Markdown, LaTeX, HTML or the terminal.

    Attributes:
        title: of the suite.
        across: the axis whose values are the columns; None where there is one column.
        metric: that is shown.
        lower: whether less of it is better.
        methods: the best first.
        sections: tables of the metric; the first speaks for all.
        measures: a table with a column for each of several metrics; None for none.
        baseline: None for none.
        test: how methods were compared with the baseline; None where none was.
        comparisons: by method.
        ranks: None where fewer than two methods share a block.
        left_out: methods without a rank, because cells of theirs are lost.
        seconds: median time a cell by method; the first cell of a process pays for loading.
        caption: how to read it all, one paragraph.
        decimals: places that shares are shown with; None for four significant digits.
    """

    title: str
    across: str | None
    metric: str
    lower: bool
    methods: tuple[str, ...]
    sections: tuple[Section, ...]
    measures: Section | None
    baseline: str | None
    test: Test | None
    comparisons: dict[str, Comparison]
    ranks: Ranks | None
    left_out: tuple[str, ...]
    seconds: dict[str, float]
    caption: str
    decimals: int | None

    @property
    def tables(self) -> tuple[Section, ...]:
        """All that is set."""
        return self.sections if self.measures is None else (*self.sections, self.measures)

    def figure(self, value: float) -> str:
        """A value of the metric as it is shown."""
        return shown(value, self.decimals)

    def half(self, estimate: Estimate, repeats: int) -> str:
        """The half width of an interval as it is shown; empty where nothing was repeated to know it by."""
        known = repeats > 1 or estimate.half_width > 0
        return shown(estimate.half_width, self.decimals) if known else ""

    def signed(self, value: float) -> str:
        """A difference as it is shown, with its sign."""
        text = shown(abs(value), self.decimals)
        return ("+" if value >= 0 else "−") + text


def shown(value: float, decimals: int | None) -> str:
    """A value with so many decimals, or four significant digits."""
    if decimals is None:
        return number(float(value))
    return f"{value:.{decimals}f}"


def p_value(p: float) -> str:
    """A p-value as papers print it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def label(value: Value) -> str:
    """A value of an axis as the command line has it."""
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)


def varying_axes(rows: Sequence[Row]) -> list[str]:
    """The axes that have more than one value."""
    return [axis for axis in axis_names(rows) if len({label(row.axes.get(axis)) for row in rows}) > 1]


def axis_values(rows: Sequence[Row], axis: str) -> list[Value]:
    """The values of an axis: numbers in rising order before everything else, which keeps its order."""
    values = list({label(row.axes.get(axis)): row.axes.get(axis) for row in rows}.values())
    numbers = sorted(value for value in values if isinstance(value, int | float))
    return [*numbers, *(value for value in values if not isinstance(value, int | float))]


def metric_of(row: Row, metric: str) -> float | None:
    """The metric of a completed cell, or what it took; None where it has none that is finite.

    What it took is called ``seconds`` and ``peak_memory_mb``.
    """
    known = {"seconds": row.seconds, "peak_memory_mb": row.peak_memory_mb, **row.metrics}
    value = known.get(metric) if row.status == "completed" else None
    return None if value is None or not math.isfinite(value) else float(value)


def matched(rows: Iterable[Row], metric: str, method: str, baseline: str) -> list[tuple[float, float]]:
    """The metric of a method and of the baseline in every cell of the same axes and seed that both have."""
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        value = metric_of(row, metric)
        if value is not None and row.method in (method, baseline):
            key = (row.command, label(row.seed), *sorted(f"{a}={label(v)}" for a, v in row.axes.items()))
            found.setdefault(key, {})[row.method] = value
    return [(pair[method], pair[baseline]) for pair in found.values() if len(pair) == 2]


def summarise(table: SuiteTable) -> Summary:
    """Group the cells by method and condition, and compare the methods.

    A mean over conditions is taken seed by seed first and only where no condition is lost, so that every
    method is averaged over the same.
    """
    rows, metric = table.rows, table.metric
    lower = lower_is_better(metric)
    axes = varying_axes(rows)
    column_axis = _column_axis(rows, axes, table.x)
    decimals = _decimals(rows, metric)
    methods = list(dict.fromkeys(row.method for row in rows))
    drawn = _sections(rows, metric, methods, axes, column_axis)
    sections = tuple(_placed(section, lower, decimals) for section in drawn)
    methods = _best_first(methods, sections[0], lower)
    measures = _measures(rows, methods, table.metrics) if table.metrics else None
    baseline = table.baseline if table.baseline in methods else None
    test: Test | None = None
    comparisons: dict[str, Comparison] = {}
    if baseline is not None:
        pairs = {name: matched(rows, metric, name, baseline) for name in methods if name != baseline}
        test, comparisons = compare_methods({n: [a - b for a, b in each] for n, each in pairs.items()})
    ranked, left_out, blocks = _blocks(rows, metric, methods, column_axis)
    ranks = None
    if len(ranked) > 1 and len(blocks):
        ranks = rank_methods(blocks, ranked, lower_is_better=lower)
    seconds = {}
    for method in methods:
        times = [r.seconds for r in rows if r.method == method and r.seconds is not None]
        if times:
            seconds[method] = float(np.median(times))
    summary = Summary(
        title=table.title,
        across=column_axis,
        metric=metric,
        lower=lower,
        methods=tuple(methods),
        sections=sections,
        measures=measures,
        baseline=baseline,
        test=test if comparisons else None,
        comparisons=comparisons,
        ranks=ranks,
        left_out=left_out if ranks else (),
        seconds=seconds,
        caption="",
        decimals=decimals,
    )
    return replace(summary, caption=_caption(summary, table, axes))


def _column_axis(rows: Sequence[Row], axes: Sequence[str], x: str | None) -> str | None:
    if x in axes:
        return x
    return max(axes, key=lambda axis: len(axis_values(rows, axis)), default=None)


def _sections(
    rows: Sequence[Row], metric: str, methods: Sequence[str], axes: Sequence[str], column_axis: str | None
) -> list[Section]:
    if column_axis is None:
        return [Section("", (metric,), {m: (e,) for m, e in _entries(rows, metric, methods).items()})]
    others = [axis for axis in axes if axis != column_axis]
    across = axis_values(rows, column_axis)
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(label(row.axes.get(axis)) for axis in others), []).append(row)
    sections = []
    for condition in itertools.product(*([label(v) for v in axis_values(rows, axis)] for axis in others)):
        if condition in parts:
            title = ", ".join(f"{axis}={value}" for axis, value in zip(others, condition, strict=True))
            sections.append(_section(title, parts[condition], metric, methods, column_axis, across))
    if len(sections) > 1:
        sections.insert(
            0, _section(f"mean over {' and '.join(others)}", rows, metric, methods, column_axis, across)
        )
    return sections


def _section(
    title: str,
    rows: Sequence[Row],
    metric: str,
    methods: Sequence[str],
    axis: str,
    across: Sequence[Value],
) -> Section:
    parts = [[r for r in rows if label(r.axes.get(axis)) == label(value)] for value in across]
    columns = [_heading(axis, value) for value in across]
    if len(across) > 1:
        parts.append(list(rows))
        columns.append("mean")
    entries = [_entries(part, metric, methods) for part in parts]
    return Section(title, tuple(columns), {m: tuple(part[m] for part in entries) for m in methods})


def _measures(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Section:
    found: dict[str, list[Entry]] = {method: [] for method in methods}
    for metric in metrics:
        column = Section("", (metric,), {m: (e,) for m, e in _entries(rows, metric, methods).items()})
        placed = _placed(column, lower_is_better(metric), _decimals(rows, metric))
        for method in methods:
            found[method] += placed.rows[method]
    return Section("several figures", tuple(metrics), {method: tuple(each) for method, each in found.items()})


def _decimals(rows: Sequence[Row], metric: str) -> int | None:
    values = [value for row in rows if (value := metric_of(row, metric)) is not None]
    return 3 if values and all(-1 <= value <= 1 for value in values) else None


def _heading(axis: str, value: Value) -> str:
    return label(value) if isinstance(value, str) else f"{axis}={label(value)}"


def _entries(rows: Sequence[Row], metric: str, methods: Sequence[str]) -> dict[str, Entry]:
    """Every method over these rows, all of whose conditions it must have."""
    cells: dict[str, list[tuple[Row, _Condition]]] = {method: [] for method in methods}
    for row in rows:
        cells[row.method].append((row, _condition(row)))
    wanted = {condition for each in cells.values() for _, condition in each}
    return {method: _entry(each, metric, wanted) for method, each in cells.items()}


def _entry(cells: Sequence[tuple[Row, _Condition]], metric: str, wanted: set[_Condition]) -> Entry:
    """Mean over seeds of the mean over the wanted conditions; an interval of one cell is its own."""
    done = [(row, where, value) for row, where in cells if (value := metric_of(row, metric)) is not None]
    failed = sum(row.status == "failed" for row, _ in cells)
    missing = len(cells) - len(done) - failed
    seeds: dict[str, dict[_Condition, float]] = {}
    for row, where, value in done:
        seeds.setdefault(label(row.seed), {})[where] = value
    complete = [list(by.values()) for by in seeds.values() if set(by) == wanted]
    if not complete:
        return Entry(None, len(done), 0, failed, missing)
    if len(done) == 1:
        row, _, value = done[0]
        half = row.metrics.get(f"{metric}_ci") or 0.0
        return Entry(Estimate(value, value - half, value + half), 1, 1, failed, missing)
    over = mean_over_seeds([float(np.mean(each)) for each in complete])
    return Entry(over, len(done), len(complete), failed, missing)


def _condition(row: Row) -> _Condition:
    return tuple(f"{axis}={label(value)}" for axis, value in sorted(row.axes.items()))


def _placed(section: Section, lower: bool, decimals: int | None) -> Section:
    """Mark the best and the second of every column, as they are shown: what looks equal is equal."""
    rows = {
        method: [replace(entry, decimals=decimals) for entry in entries]
        for method, entries in section.rows.items()
    }
    for column in range(len(section.columns)):
        figures = {
            method: float(shown(entry.estimate.value, decimals))
            for method, entries in rows.items()
            if (entry := entries[column]).estimate is not None
        }
        if len(figures) < 2:
            continue
        best = sorted(set(figures.values()), reverse=not lower)[:2]
        for method, figure in figures.items():
            if figure in best:
                rows[method][column] = replace(rows[method][column], place=best.index(figure) + 1)
    return replace(section, rows={method: tuple(entries) for method, entries in rows.items()})


def _best_first(methods: Sequence[str], section: Section, lower: bool) -> list[str]:
    def key(method: str) -> tuple[bool, float]:
        values = [e.estimate.value for e in section.rows[method] if e.estimate is not None]
        last = section.rows[method][-1].estimate
        if not values:
            return True, 0.0
        value = last.value if last is not None else float(np.mean(values))
        return last is None, value if lower else -value

    return sorted(methods, key=key)


def _blocks(
    rows: Sequence[Row], metric: str, methods: Sequence[str], column_axis: str | None
) -> tuple[list[str], tuple[str, ...], NDArray[np.float64]]:
    """Ranked methods, those left out, and means ``[N, K]`` by block and ranked method.

    A block is a value of every axis but the column axis: the shot counts of one data set are no independent
    blocks. Without such axes it is a value of the column axis, without that a seed.
    """
    others = {axis for axis in varying_axes(rows) if axis != column_axis}
    cells: dict[str, dict[tuple[str, ...], list[float]]] = {method: {} for method in methods}
    blocks: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in rows:
        value = metric_of(row, metric)
        if value is None:
            continue
        condition = _condition(row) if column_axis is not None else (label(row.seed),)
        own = tuple(f"{axis}={label(row.axes.get(axis))}" for axis in sorted(others))
        blocks[condition] = own if others else condition
        cells[row.method].setdefault(condition, []).append(value)
    ranked = [method for method in methods if set(cells[method]) == set(blocks)]
    left_out = tuple(method for method in methods if method not in ranked)
    means = [
        [
            float(np.mean([np.mean(cells[method][c]) for c, own in blocks.items() if own == block]))
            for method in ranked
        ]
        for block in dict.fromkeys(blocks.values())
    ]
    return ranked, left_out, np.array(means).reshape(len(means), len(ranked))


def _caption(summary: Summary, table: SuiteTable, axes: Sequence[str]) -> str:
    seeds = len({label(row.seed) for row in table.rows})
    parts = [f"{summary.metric} ({'lower' if summary.lower else 'higher'} is better)"]
    if seeds > 1:
        parts.append(f"mean over {seeds} seeds ± half of Student's 95% interval")
    else:
        parts.append("± half of each cell's own 95% interval")
    parts.append("best bold, second underlined")
    text = ", ".join(parts) + "."
    if summary.test:
        text += (
            f" vs {summary.baseline}: mean difference over matched cells (same axes and seed); "
            f"* where it differs by the {summary.test} (two-sided), Holm-corrected over "
            f"{len(summary.comparisons)} method{'s' * (len(summary.comparisons) != 1)}, p < 0.05."
        )
    elif table.baseline and summary.baseline is None:
        text += f" The baseline {table.baseline} is not among the methods."
    if len(axes) > 0:
        text += " A mean over conditions is given only where none is lost."
    return text
