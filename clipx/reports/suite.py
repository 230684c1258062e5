"""The report of a suite: its cells as one tidy table, and the files made from it.

A recipe fills a ``SuiteTable`` and calls ``write_report``; nothing here knows how a cell is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipx.errors import ClipxError
from clipx.files import write_atomic, write_problem
from clipx.reports import tidy
from clipx.reports.drawings import drawings
from clipx.reports.figures import save
from clipx.reports.page import Picture, page
from clipx.reports.suite_latex import summary_latex
from clipx.reports.suite_markdown import summary_markdown
from clipx.reports.suite_terminal import terminal_table
from clipx.reports.summary import summarise
from clipx.reports.svg import inline_svg

Value = str | int | float | None
"""A value of an axis; None where a cell has none of it."""


@dataclass(frozen=True)
class Row:
    """One cell of a suite.

    Attributes:
        command: of clipx, ``adapt``.
        method: its card's name.
        axes: the value of every axis of the grid except method and seed.
        seed: None where the cell takes several seeds itself.
        cell: hash of the resolved config.
        run: the cell's run directory, relative to the report; None where there is none.
        status: what became of it.
        error: why it failed, else None.
        seconds: that it took.
        peak_memory_mb: the most memory it held.
        metrics: value by name; ``<name>_ci`` is the half width of the 95% interval of ``<name>``.
        command_line: the exact command that makes this cell.
        config: resolved, YAML.
    """

    command: str
    method: str
    axes: dict[str, Value]
    seed: int | str | None
    cell: str
    run: str | None
    status: Literal["completed", "failed", "missing"]
    error: str | None
    seconds: float | None
    peak_memory_mb: float | None
    metrics: dict[str, float]
    command_line: str
    config: str


@dataclass(frozen=True)
class SuiteTable:
    """The cells of a suite, and how they are to be shown.

    Attributes:
        name: of the suite.
        title: for people.
        rows: the cells.
        metric: that the tables and figures show.
        baseline: method that the others are compared against; None for none.
        x: axis of the curves and of the table's columns; None for none.
        metrics: for a further table, a column each.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    metric: str
    baseline: str | None
    x: str | None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What ``write_report`` made.

    Attributes:
        summary_columns: headings of the table for the terminal.
        summary_rows: its rows, one a method, the best first.
        files: that were written.
    """

    summary_columns: tuple[str, ...]
    summary_rows: tuple[tuple[str, ...], ...]
    files: tuple[Path, ...]


def write_report(table: SuiteTable, folder: Path) -> Report:
    """Write the tidy table and everything that is drawn from it, each file whole or not at all.

    Args:
        table: the cells; those that failed or are missing are listed, not averaged.
        folder: is made where it is missing.

    Raises:
        ClipxError: if a file cannot be written, or the table has no cell.
    """
    if not table.rows:
        raise ClipxError(f"suite {table.name} has no cell", hint="its grid must name at least one method")
    summary = summarise(table)
    cells = tidy.tidy(table)
    files = [
        _write(folder / "results.parquet", tidy.parquet(cells)),
        _write(folder / "results.csv", tidy.csv(cells)),
        _write(folder / "table.md", summary_markdown(summary).encode()),
        _write(folder / "table.tex", summary_latex(summary).encode()),
    ]
    pictures = []
    for drawing in drawings(table, summary, folder):
        files.append(save(drawing.figure, folder / "figures" / f"{drawing.name}.png"))
        drawing.figure.set_layout_engine("none")  # where saving put everything, it stays
        svg = inline_svg(drawing.figure, prefix=drawing.name, label=drawing.caption)
        pictures.append(Picture(svg, drawing.caption, drawing.wide))
    files.append(_write(folder / "report.html", page(table, summary, pictures).encode()))
    columns, rows = terminal_table(summary)
    return Report(columns, rows, tuple(files))


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as problem:
        raise write_problem(problem, path.parent) from problem
    return path
