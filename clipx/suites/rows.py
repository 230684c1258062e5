"""The cells of a suite and their runs, as the rows of its report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import __version__
from clipx.commands.recipe import key_metric
from clipx.suites.cells import Cell
from clipx.suites.index import CellIndex
from clipx.suites.suite import Suite

if TYPE_CHECKING:  # to draw a report takes numpy; to see that there is one takes none
    from clipx.reports.suite import Row, SuiteTable


def table_of(suite: Suite, cells: Sequence[Cell], index: CellIndex, folder: Path) -> SuiteTable:
    """The table of a suite, from what is known of its cells.

    Args:
        suite: says how it is shown.
        cells: composed.
        index: where their runs are found.
        folder: of the report, from which the runs are seen.
    """
    from clipx.reports.suite import SuiteTable

    rows = tuple(_row(cell, index, folder) for cell in cells)
    metric = suite.metric
    for cell, row in zip(cells, rows, strict=True):
        metric = metric or key_metric(row.metrics, cell.settings)
    return SuiteTable(suite.name, suite.title, rows, metric or "", suite.baseline, suite.x, suite.metrics)


def state_of(suite: Suite, cells: Sequence[Cell], index: CellIndex) -> str:
    """Hash of what a report shows: equal for reports that would be equal."""
    found = []
    for cell in cells:
        entry = index.find(cell.key)
        found.append([cell.key, cell.label, entry and [entry.run, entry.status, entry.error]])
    text = json.dumps([__version__, suite.name, suite.described(), found], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _row(cell: Cell, index: CellIndex, folder: Path) -> Row:
    from clipx.reports.suite import Row

    entry = index.find(cell.key)
    run = None if entry is None or entry.run is None else index.root / entry.run
    known = {} if run is None else _results(run)
    status = "missing" if entry is None or entry.status == "running" else entry.status
    return Row(
        command=cell.command,
        method=cell.method,
        axes={key: _plain(value) for key, value in cell.axes.items()},
        seed=cell.seed,
        cell=cell.key,
        run=None if run is None else os.path.relpath(run, folder),
        status=status,
        error=entry.error if entry is not None else None,
        seconds=entry.seconds if entry is not None else None,
        peak_memory_mb=entry.peak_memory_mb if entry is not None else None,
        metrics=known if status == "completed" else {},
        command_line=cell.command_line,
        config=_config(run, cell),
    )


def _results(run: Path) -> dict[str, float]:
    try:
        metrics = json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        str(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _config(run: Path | None, cell: Cell) -> str:
    if run is not None:
        try:
            return (run / "config.yaml").read_text(encoding="utf-8")
        except OSError:
            pass
    import yaml

    return yaml.safe_dump(cell.settings, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> str | int | float | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)
