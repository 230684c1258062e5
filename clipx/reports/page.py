"""The report of a suite as one HTML file that asks nothing of the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from clipx import __version__
from clipx.console import duration, finite
from clipx.reports.suite_figures import method_styles
from clipx.reports.summary import axis_values, label, metric_of, p_value, varying_axes
from clipx.reports.svg import VARIABLES
from clipx.reports.tidy import axis_names

if TYPE_CHECKING:
    from clipx.reports.suite import Row, SuiteTable
    from clipx.reports.summary import Entry, Section, Summary

_STYLE, _SCRIPT = (Path(__file__).with_name(f"page.{kind}") for kind in ("css", "js"))
# The file says itself that nothing may be loaded, so no content of a cell can reach the network.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Picture:
    """A figure in the page: its SVG, its caption, and whether it takes the whole width."""

    svg: str
    caption: str
    wide: bool


def page(table: SuiteTable, summary: Summary, pictures: Sequence[Picture]) -> str:
    """The whole page: what came out, the tables, the figures, and every cell with its command and config.

    Args:
        table: the cells; every text of theirs is escaped.
        summary: of the same table.
        pictures: in order.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(summary.title)}</title>",
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head><body>",
        f'<header class="top"><div><h1>{escape(summary.title)}</h1>{_scope(table)}</div>',
        '<button type="button" class="theme" id="theme">auto</button></header>',
        f"<main>{_tiles(table, summary)}{_results(table, summary)}{_failures(table.rows)}",
        _figures(pictures),
        _cells(table, summary),
        "</main>",
        f"<footer>clipx {escape(__version__)} · {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} · "
        f"suite {escape(table.name)} · the same figures are in results.csv, results.parquet, table.md and "
        "table.tex beside this file</footer>",
        f'<script type="application/json" id="data">{_data(table.rows)}</script>',
        f"<script>{_SCRIPT.read_text(encoding='utf-8')}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _scope(table: SuiteTable) -> str:
    rows = table.rows
    varying = varying_axes(rows)
    methods, seeds = len({r.method for r in rows}), len({label(r.seed) for r in rows})
    parts = [f"{methods} method{'s' * (methods != 1)}"]
    for axis in axis_names(rows):
        values = [label(value) for value in axis_values(rows, axis)]
        if axis not in varying:
            parts.append(f"{axis} = {values[0]}")
        elif len(values) <= 8:
            parts.append(f"{axis} {', '.join(values)}")
        else:
            parts.append(f"{len(values)} values of {axis}")
    if seeds > 1:
        parts.append(f"{seeds} seeds")
    return f'<p class="faint">{escape(" · ".join(parts))}</p>'


def _tiles(table: SuiteTable, summary: Summary) -> str:
    rows = table.rows
    done = sum(row.status == "completed" for row in rows)
    failed = sum(row.status == "failed" for row in rows)
    tiles = []
    best = summary.methods[0]
    entry = summary.sections[0].rows[best][-1]
    if entry.estimate is not None:
        under = f"{summary.metric} {entry.figure}" + (f" ± {entry.half}" if entry.half else "")
        tiles.append(("best", best, under))
    found = summary.comparisons.get(best)
    if found is not None:
        p = "not tested" if found.adjusted is None else f"p {_equals(p_value(found.adjusted))}"
        under = f"{p}, {found.pairs} matched cell{'s' * (found.pairs != 1)}"
        tiles.append((f"{best} vs {summary.baseline}", summary.signed(found.difference.value), under))
    state = "all completed" if done == len(rows) else f"{failed} failed, {len(rows) - done - failed} missing"
    tiles.append(("cells", f"{done} of {len(rows)}", state))
    times = [row.seconds for row in rows if row.seconds is not None]
    if times:
        peak = max((row.peak_memory_mb for row in rows if row.peak_memory_mb is not None), default=None)
        under = f"{duration(sum(times) / len(times))} a cell"
        under += "" if peak is None else f", peak {_memory(peak)}"
        tiles.append(("time of all cells", duration(sum(times)), under))
    inside = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}'
        f'<span class="under">{_linked(escape(under), failed and name == "cells")}</span></dd></div>'
        for name, value, under in tiles
    )
    return f'<dl class="tiles">{inside}</dl>'


def _linked(text: str, to_failures: int | bool) -> str:
    return f'<a href="#failures">{text}</a>' if to_failures else text


def _equals(p: str) -> str:
    return f"< {p[1:]}" if p.startswith("<") else f"= {p}"


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def _failures(rows: Sequence[Row]) -> str:
    """The cells that failed, those of one error together."""
    groups: dict[str, list[tuple[int, Row]]] = {}
    for place, row in enumerate(rows):
        if row.status == "failed":
            groups.setdefault(row.error or "no error was written down", []).append((place, row))
    if not groups:
        return ""
    blocks = []
    for error, cells in groups.items():
        place, first = cells[0]
        names = "".join(f"<li>{escape(_name(row))}</li>" for _, row in cells)
        listed = f"<ul>{names}</ul>"
        if len(cells) > 4:
            listed = f"<details><summary>{len(cells)} cells</summary>{listed}</details>"
        blocks.append(
            f'<div class="failure"><strong>{len(cells)} cell{"s" * (len(cells) != 1)}</strong>'
            f"<pre>{escape(error)}</pre><code>{escape(first.command_line)}</code> "
            f'<button type="button" class="copy" data-place="{place}">copy</button>{listed}</div>'
        )
    return f'<section id="failures"><h2>Failed cells</h2>{"".join(blocks)}</section>'


def _name(row: Row) -> str:
    parts = [row.method, *(f"{axis}={label(value)}" for axis, value in row.axes.items())]
    if row.seed is not None:
        parts.append(f"seed={label(row.seed)}")
    return " ".join(parts)


def _results(table: SuiteTable, summary: Summary) -> str:
    styles = method_styles(list(dict.fromkeys(row.method for row in table.rows)), summary.baseline)
    colours = {method: f"var({VARIABLES[look['color']]})" for method, look in styles.items()}
    first, *rest = summary.tables
    parts = [f"<section><h2>Results{_titled(first.title)}</h2>", _summary(summary, first, colours, True)]
    parts.append(f'<p class="note">{escape(summary.caption)}</p>')
    for section in rest:
        parts.append(f'<details class="more"><summary>{escape(section.title)}</summary>')
        parts.append(_summary(summary, section, colours, False) + "</details>")
    return "".join(parts) + "</section>"


def _titled(title: str) -> str:
    return f", {escape(title)}" if title else ""


def _summary(summary: Summary, section: Section, colours: dict[str, str], compared: bool) -> str:
    compared = compared and bool(summary.comparisons)
    heads = [("method", False), *((name, True) for name in section.columns)]
    if compared:
        heads += [(f"vs {summary.baseline}", True), ("p", True)]
    heads.append(("time a cell", True))
    lines = []
    shades = [
        _shades([section.rows[m][c] for m in summary.methods], summary.lower) for c in _columns(section)
    ]
    for place, method in enumerate(summary.methods):
        tds = "".join(
            _entry(entry, shade[place]) for entry, shade in zip(section.rows[method], shades, strict=True)
        )
        if compared:
            tds += _difference(summary, method)
        seconds = summary.seconds.get(method)
        tds += f'<td class="n" data-v="{_plain(seconds)}">{escape(duration(seconds))}</td>'
        base = ' class="base"' if method == summary.baseline else ""
        lines.append(
            f'<tr{base}><th scope="row"><span class="swatch" style="background:{colours[method]}"></span>'
            f'<button type="button" class="pick" title="show its cells">{escape(method)}</button></th>'
            f"{tds}</tr>"
        )
    return (
        f'<div class="sheet" tabindex="0" role="region" aria-label="results"><table class="summary sortable">'
        f"<thead><tr>{_heads(heads, up={'p', 'time a cell'})}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _columns(section: Section) -> range:
    return range(len(section.columns))


def _shades(entries: Sequence[Entry], lower: bool) -> list[float | None]:
    """How far each is from the worst (0) to the best (1) of its column."""
    values = [entry.estimate.value for entry in entries if entry.estimate is not None]
    if len(values) < 2 or max(values) == min(values):
        return [None] * len(entries)
    low, span = min(values), max(values) - min(values)
    shares = [None if e.estimate is None else (e.estimate.value - low) / span for e in entries]
    return [None if share is None else 1 - share if lower else share for share in shares]


def _heads(heads: Iterable[tuple[str, bool]], *, up: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    return "".join(
        f'<th scope="col"{" class=n" if number else ""}{" data-first=up" if name in up else ""}>'
        f'<button type="button" class="sort">{escape(name)}</button></th>'
        for name, number in heads
    )


def _entry(entry: Entry, shade: float | None) -> str:
    if entry.estimate is None:
        text = f'<span class="state {entry.absence}">{entry.absence}</span>' if entry.absence else "–"
        return f'<td class="n" data-v="">{text}</td>'
    tint = "" if shade is None else f' style="--t:{shade:.2f}"'
    kind = {1: ' class="best"', 2: ' class="second"'}.get(entry.place, "")
    spread = f'<span class="half">{"± " + escape(entry.half) if entry.half else ""}</span>'
    figure = escape(entry.figure)
    lost = entry.failed + entry.missing
    title = f'title="{entry.cells} cell{"s" * (entry.cells != 1)}{f", {lost} lost" if lost else ""}"'
    return (
        f'<td class="n" data-v="{_plain(entry.estimate.value)}"{tint} {title}>'
        f"<span{kind}>{figure}</span>{spread}</td>"
    )


def _difference(summary: Summary, method: str) -> str:
    found = summary.comparisons.get(method)
    if found is None:
        return '<td class="n" data-v="">–</td><td class="n" data-v="">–</td>'
    value, half = found.difference.value, summary.half(found.difference, found.pairs)
    worse = value > 0 if summary.lower else value < 0
    kind = ("minus" if worse else "plus") if found.significant else ""
    spread = f'<span class="half">{"± " + escape(half) if half else ""}</span>'
    star = f'<span class="star">{"*" if found.significant else ""}</span>'
    p = "–" if found.adjusted is None else p_value(found.adjusted)
    return (
        f'<td class="n" data-v="{_plain(value)}" title="{found.pairs} matched cells">'
        f'<span class="{kind}">{escape(summary.signed(value))}</span>{star}{spread}</td>'
        f'<td class="n" data-v="{_plain(found.adjusted)}">{escape(p)}</td>'
    )


def _figures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    inside = "".join(
        f"<figure{' class=wide' if each.wide else ''}><div>{each.svg}</div>"
        f"<figcaption>{escape(each.caption)}</figcaption></figure>"
        for each in pictures
    )
    return f'<section><h2>Figures</h2><div class="figures">{inside}</div></section>'


def _cells(table: SuiteTable, summary: Summary) -> str:
    rows, axes = table.rows, varying_axes(table.rows)
    numeric = {a for a in axes if all(isinstance(v, int | float | None) for v in axis_values(rows, a))}
    heads = [("method", False), *((axis, axis in numeric) for axis in axes)]
    heads += [("seed", True), (summary.metric, True), ("time", True), ("memory", True), ("state", False)]
    chips = ""
    for name, state in (("all", ""), ("completed",) * 2, ("failed",) * 2, ("missing",) * 2):
        number = len(rows) if not state else sum(row.status == state for row in rows)
        if number and (not state or number < len(rows)):
            pressed = "false" if state else "true"
            chips += (
                f'<button type="button" class="chip" data-state="{state}" aria-pressed="{pressed}">'
                f"{name} {number}</button>"
            )
    bodies = "".join(_cell(place, row, axes, numeric, summary) for place, row in enumerate(rows))
    return (
        '<section id="cells"><h2>Cells</h2><div class="tools">'
        '<input id="filter" type="search" placeholder="filter: words, or axis=value" '
        'aria-label="filter the cells" autocomplete="off" spellcheck="false">'
        f'{chips}<span class="count" id="count" aria-live="polite">{len(rows)} cells</span></div>'
        '<div class="sheet" tabindex="0" role="region" aria-label="cells"><table class="cells sortable">'
        f"<thead><tr>{_heads(heads, up={'seed', 'time', 'memory', *axes})}</tr></thead>{bodies}</table>"
        '<div class="nothing" id="nothing" hidden>no cell matches</div></div>'
        "<noscript><p class=note>Without scripts there is no sorting and no look inside a cell: "
        "results.csv has all of it.</p></noscript></section>"
    )


def _cell(place: int, row: Row, axes: Sequence[str], numeric: set[str], summary: Summary) -> str:
    value = metric_of(row, summary.metric)
    half = row.metrics.get(f"{summary.metric}_ci") if value is not None else None
    spread = f'<span class="half">{"± " + summary.figure(half) if half else ""}</span>'
    words = [f"method={row.method}", *(f"{axis}={label(value)}" for axis, value in row.axes.items())]
    search = " ".join([*words, f"seed={label(row.seed)}", row.status, row.cell, row.error or ""]).lower()
    tds = [
        f'<td{" class=n" if axis in numeric else ""} data-v="{_key(row.axes.get(axis))}">'
        f"{escape(label(row.axes.get(axis)))}</td>"
        for axis in axes
    ]
    seed = "" if row.seed is None else label(row.seed)
    figure = "–" if value is None else escape(summary.figure(value)) + spread
    memory = "–" if row.peak_memory_mb is None else _memory(row.peak_memory_mb)
    tds += [
        f'<td class="n" data-v="{escape(seed)}">{escape(seed or "–")}</td>',
        f'<td class="n" data-v="{_plain(value)}">{figure}</td>',
        f'<td class="n" data-v="{_plain(row.seconds)}">{escape(duration(row.seconds))}</td>',
        f'<td class="n" data-v="{_plain(row.peak_memory_mb)}">{memory}</td>',
        f'<td><span class="state {row.status}">{row.status}</span></td>',
    ]
    return (
        f'<tbody class="cell" data-place="{place}" data-state="{row.status}" data-search="{escape(search)}">'
        f'<tr><th scope="row" data-v="{escape(row.method)}"><button type="button" class="open" '
        f'aria-expanded="false">{escape(row.method)}</button></th>{"".join(tds)}</tr></tbody>'
    )


def _plain(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def _key(value: str | int | float | None) -> str:
    return "" if value is None else escape(label(value))


def _data(rows: Sequence[Row]) -> str:
    """What is inside the cells; each line of the configs once, since they have nearly all in common."""
    lines: dict[str, int] = {}
    cells = [
        {
            "cell": row.cell,
            "run": row.run,
            "href": None if row.run is None else quote(row.run) + "/",
            "error": row.error,
            "command": row.command_line,
            "metrics": {name: value for name, value in row.metrics.items() if math.isfinite(value)},
            "config": [lines.setdefault(line, len(lines)) for line in row.config.rstrip("\n").split("\n")],
        }
        for row in rows
    ]
    text = json.dumps(
        finite({"lines": list(lines), "cells": cells}), ensure_ascii=False, separators=(",", ":")
    )
    return text.replace("<", "\\u003c").replace("&", "\\u0026")
