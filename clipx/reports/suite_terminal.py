"""The first table of a suite for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipx.console import duration
from clipx.reports.summary import p_value

if TYPE_CHECKING:
    from clipx.reports.summary import Entry, Summary

_WIDE = 3
"""Columns up to which there is room for intervals."""


def terminal_table(summary: Summary) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and rows of a summary's table of several metrics where it has one, else of its first table.

    One row a method, the best first.
    """
    section = summary.measures or summary.sections[0]
    wide = len(section.columns) <= _WIDE
    columns = ["method", *section.columns]
    if summary.comparisons:
        columns += [f"vs {summary.baseline}", "p"]
    columns.append("time a cell")
    rows = []
    for method in summary.methods:
        row = [method, *(_entry(entry, wide) for entry in section.rows[method])]
        if summary.comparisons:
            found = summary.comparisons.get(method)
            row.append("-" if found is None else summary.signed(found.difference.value))
            row.append("-" if found is None or found.adjusted is None else p_value(found.adjusted))
        rows.append((*row, duration(summary.seconds.get(method))))
    return tuple(columns), tuple(rows)


def _entry(entry: Entry, wide: bool) -> str:
    if entry.estimate is None:
        return entry.absence or "-"
    half = entry.half if wide else ""
    return entry.figure + (f" ± {half}" if half else "")
