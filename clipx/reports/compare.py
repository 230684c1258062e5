"""Two evaluations beside each other: what differs in the cells that both have, and what only one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipx.errors import ClipxError, did_you_mean
from clipx.reports import tidy
from clipx.reports.significance import Comparison, Test, compare_methods
from clipx.reports.summary import label, metric_of, p_value, shown
from clipx.reports.tables import markdown

if TYPE_CHECKING:
    from clipx.reports.suite import Row, SuiteTable

COLUMNS = ("method", "first", "second", "difference", "95% interval", "p", "cells")
_LISTED = 20


@dataclass(frozen=True)
class MethodChange:
    """A method in two evaluations, over the cells that both completed.

    Attributes:
        first: mean of the metric in the first.
        second: in the second.
        comparison: second - first over the matched cells; p is Holm-corrected over the methods.
    """

    first: float
    second: float
    comparison: Comparison


@dataclass(frozen=True)
class SuiteComparison:
    """What became of the cells from one evaluation to another.

    Attributes:
        metric: that is compared.
        test: that the p-values are of; None where no cell is in both.
        methods: those with matched cells, in the order of the first evaluation.
        matched: cells that both completed.
        equal: those of them whose metric is the same number.
        only_first: cells that only the first completed, and what the second has instead.
        only_second: the other way round.
    """

    metric: str
    test: Test | None
    methods: dict[str, MethodChange]
    matched: int
    equal: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """Rows of a table under ``COLUMNS``; a star at the differences that are significant."""
        values = [value for each in self.methods.values() for value in (each.first, each.second)]
        decimals = 3 if all(-1 <= value <= 1 for value in values) else None
        rows: list[tuple[str, ...]] = []
        for method, each in self.methods.items():
            found = each.comparison
            spread = "-"
            if found.pairs > 1:
                low, high = (_signed(end, decimals) for end in (found.difference.low, found.difference.high))
                spread = f"{low} to {high}"
            rows.append(
                (
                    method,
                    shown(each.first, decimals),
                    shown(each.second, decimals),
                    _signed(found.difference.value, decimals) + (" *" if found.significant else ""),
                    spread,
                    "-" if found.adjusted is None else p_value(found.adjusted),
                    str(found.pairs),
                )
            )
        return rows

    def notes(self) -> list[str]:
        """What the table cannot say, one line each."""
        notes = [f"{self.metric}, second - first; {self.matched} cells in both, {self.equal} of them equal"]
        if self.test is not None:
            notes.append(f"* p < 0.05: {self.test} (two-sided), Holm-corrected over {len(self.methods)}")
        for name, cells in (("first", self.only_first), ("second", self.only_second)):
            if cells:
                more = f", and {len(cells) - _LISTED} more" if len(cells) > _LISTED else ""
                notes.append(f"only in the {name} ({len(cells)}): {'; '.join(cells[:_LISTED])}{more}")
        return notes

    def markdown(self) -> str:
        """The table and the notes as Markdown."""
        table = markdown(COLUMNS, self.rows(), right=COLUMNS[1:])
        return table + "".join(f"\n{note}\n" for note in self.notes())


def compare_runs(first: Path, second: Path, metric: str | None = None) -> SuiteComparison:
    """Compare the tables of two runs of ``clipx eval``.

    Args:
        first, second: run directories, or their ``results.parquet``.
        metric: None for the one that the first shows.

    Raises:
        ClipxError: if a table is missing or unreadable, or they have nothing to compare.
    """
    return compare(*(tidy.read(_table(path)) for path in (first, second)), metric=metric)


def _table(path: Path) -> Path:
    return path / "results.parquet" if path.is_dir() else path


def compare(first: SuiteTable, second: SuiteTable, *, metric: str | None = None) -> SuiteComparison:
    """Compare two suites cell by cell: the same command, method, seed and value of every axis.

    An axis that only one suite has is passed over if it has a single value there.

    Args:
        first, second: the suites; differences are second - first.
        metric: None for the one that the first shows.

    Raises:
        ClipxError: if a suite does not have the metric, or varies an axis that the other does not know.
    """
    metric = metric or first.metric
    for name, table in (("first", first), ("second", second)):
        known = tidy.metric_names(table.rows)
        if metric not in known:
            raise ClipxError(f"the {name} evaluation has no {metric}", hint=did_you_mean(metric, known))
    axes = _shared_axes(first.rows, second.rows)
    before, after = ({_key(row, axes): row for row in table.rows} for table in (first, second))
    pairs: dict[str, list[tuple[float, float]]] = {}
    for key, row in before.items():
        values = metric_of(row, metric), (metric_of(after[key], metric) if key in after else None)
        if values[0] is not None and values[1] is not None:
            pairs.setdefault(row.method, []).append((values[0], values[1]))
    test, found = compare_methods({name: [b - a for a, b in rows] for name, rows in pairs.items()})
    return SuiteComparison(
        metric=metric,
        test=test if found else None,
        methods={
            name: MethodChange(
                first=float(np.mean([a for a, _ in pairs[name]])),
                second=float(np.mean([b for _, b in pairs[name]])),
                comparison=each,
            )
            for name, each in found.items()
        },
        matched=sum(len(rows) for rows in pairs.values()),
        equal=sum(a == b for rows in pairs.values() for a, b in rows),
        only_first=_only(before, after, metric),
        only_second=_only(after, before, metric),
    )


_Key = tuple[tuple[str, str], ...]


def _shared_axes(first: Sequence[Row], second: Sequence[Row]) -> list[str]:
    ours, theirs = tidy.axis_names(first), tidy.axis_names(second)
    for name, rows, own, other in (("first", first, ours, theirs), ("second", second, theirs, ours)):
        for axis in own:
            if axis not in other and len({label(row.axes.get(axis)) for row in rows}) > 1:
                raise ClipxError(
                    f"only the {name} evaluation varies {axis}: its cells have no counterpart",
                    hint=f"vary {axis} in both, or in neither",
                )
    return [axis for axis in ours if axis in theirs]


def _key(row: Row, axes: Sequence[str]) -> _Key:
    named = (("command", row.command), ("method", row.method))
    return (*named, *((axis, label(row.axes.get(axis))) for axis in axes), ("seed", label(row.seed)))


def _only(these: dict[_Key, Row], those: dict[_Key, Row], metric: str) -> tuple[str, ...]:
    """The cells that have the metric here and not there, as a person reads them."""
    names = []
    for key, row in these.items():
        other = those.get(key)
        if metric_of(row, metric) is None or (other is not None and metric_of(other, metric) is not None):
            continue
        name = " ".join([row.method, *(f"{axis}={value}" for axis, value in key[2:])])
        state = "" if other is None else "without the metric" if other.status == "completed" else other.status
        names.append(f"{name} ({state} in the other)" if state else name)
    return tuple(names)


def _signed(value: float, decimals: int | None) -> str:
    return ("+" if value >= 0 else "-") + shown(abs(value), decimals)
