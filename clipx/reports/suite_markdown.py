"""The tables of a suite as GitHub-flavoured Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipx.reports.tables import markdown

if TYPE_CHECKING:
    from clipx.reports.summary import Entry, Section, Summary


def summary_markdown(summary: Summary) -> str:
    """A heading, every table, and the caption; best bold, second underlined."""
    parts = [f"# {_escaped(summary.title)}\n"]
    for place, section in enumerate(summary.tables):
        if section.title:
            parts.append(f"## {_escaped(section.title)}\n")
        parts.append(_table(summary, section, compared=place == 0))
    parts.append(_escaped(summary.caption) + "\n")
    return "\n".join(parts)


def _table(summary: Summary, section: Section, *, compared: bool) -> str:
    columns = ["method", *map(_escaped, section.columns)]
    compared = compared and bool(summary.comparisons)
    if compared:
        columns.append(f"vs {_escaped(summary.baseline or '')}")
    rows = []
    for method in summary.methods:
        row = [_escaped(method), *(_entry(entry) for entry in section.rows[method])]
        if compared:
            row.append(_difference(summary, method))
        rows.append(row)
    return markdown(columns, rows, right=columns[1:])


def _entry(entry: Entry) -> str:
    if entry.estimate is None:
        return entry.absence or "-"
    figure, half = entry.figure, entry.half
    figure = {1: f"**{figure}**", 2: f"<ins>{figure}</ins>"}.get(entry.place, figure)
    return f"{figure} ± {half}" if half else figure


def _difference(summary: Summary, method: str) -> str:
    found = summary.comparisons.get(method)
    if found is None:
        return ""
    half = summary.half(found.difference, found.pairs)
    text = summary.signed(found.difference.value) + (f" ± {half}" if half else "")
    return text + (" \\*" if found.significant else "")


def _escaped(text: str) -> str:
    for character in "\\`*_<>[]#":
        text = text.replace(character, f"\\{character}")
    return text
