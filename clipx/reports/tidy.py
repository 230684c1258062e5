"""The tidy table of a suite, one row a cell: Parquet with everything, CSV without the configs, and back."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.errors import ClipxError

if TYPE_CHECKING:
    import pyarrow

    from clipx.reports.suite import Row, SuiteTable

BEFORE = ("command", "method")
AFTER = ("seed", "cell", "run", "status", "error", "seconds", "peak_memory_mb", "command_line", "config")
_DESCRIPTION = b"clipx.suite"


def tidy(table: SuiteTable) -> pyarrow.Table:
    """One row a cell: command, method, one column an axis, seed, what became of it, one column a metric.

    An axis or a metric named like another column gets ``axis.`` or ``metric.`` before its name. What the rows
    cannot say (title, metric, baseline, which column is what) is in the schema's metadata.
    """
    import pyarrow

    axes, metrics = axis_names(table.rows), metric_names(table.rows)
    axis_columns = _columns("axis", axes, (*BEFORE, *AFTER))
    metric_columns = _columns("metric", metrics, (*BEFORE, *AFTER, *axis_columns.values()))
    columns: dict[str, pyarrow.Array] = {}
    for name in BEFORE:
        columns[name] = pyarrow.array([getattr(row, name) for row in table.rows], pyarrow.string())
    for axis, name in axis_columns.items():
        columns[name] = _typed([row.axes.get(axis) for row in table.rows])
    for name in AFTER[:-2]:
        values = [getattr(row, name) for row in table.rows]
        if name == "seed":
            columns[name] = _typed(values)
        else:
            number = name in ("seconds", "peak_memory_mb")
            columns[name] = pyarrow.array(values, pyarrow.float64() if number else pyarrow.string())
    for metric, name in metric_columns.items():
        columns[name] = pyarrow.array([_known(row, metric) for row in table.rows], pyarrow.float64())
    for name in AFTER[-2:]:
        columns[name] = pyarrow.array([getattr(row, name) for row in table.rows], pyarrow.string())
    about = {"axes": axis_columns, "metrics": metric_columns}
    about |= {name: getattr(table, name) for name in ("name", "title", "metric", "baseline", "x")}
    return pyarrow.table(columns).replace_schema_metadata({_DESCRIPTION: json.dumps(about).encode()})


def axis_names(rows: Sequence[Row]) -> list[str]:
    """Every axis of the rows, in order of first appearance."""
    return list(dict.fromkeys(axis for row in rows for axis in row.axes))


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Every metric of the rows, in order of first appearance."""
    return list(dict.fromkeys(metric for row in rows for metric in row.metrics))


def parquet(table: pyarrow.Table) -> bytes:
    """The table as a Parquet file."""
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def csv(table: pyarrow.Table) -> bytes:
    """The table as CSV, without the configs, which have many lines each."""
    import pyarrow.csv

    sink = io.BytesIO()
    pyarrow.csv.write_csv(table.drop_columns(["config"]), sink)
    return sink.getvalue()


def read(path: Path) -> SuiteTable:
    """The suite that a ``results.parquet`` holds; its runs are relative to that file's folder.

    Raises:
        ClipxError: if there is no such file, or it is not the table of a suite.
    """
    import pyarrow
    import pyarrow.parquet

    from clipx.reports.suite import Row, SuiteTable

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError as problem:
        raise ClipxError(
            f"there is no {path}", hint="a run of `clipx eval` that wrote its report has one"
        ) from problem
    except (OSError, pyarrow.ArrowException) as problem:
        raise ClipxError(f"cannot read {path}: {str(problem).splitlines()[0]}") from problem
    about = json.loads((table.schema.metadata or {}).get(_DESCRIPTION, b"null"))
    if about is None:
        raise ClipxError(f"{path} is not the table of a suite", hint="results.parquet of a `clipx eval` run")
    axes, metrics = about.pop("axes"), about.pop("metrics")
    rows = tuple(
        Row(
            axes={axis: each[column] for axis, column in axes.items()},
            metrics={name: each[column] for name, column in metrics.items() if each[column] is not None},
            **{name: each[name] for name in (*BEFORE, *AFTER)},
        )
        for each in table.to_pylist()
    )
    return SuiteTable(rows=rows, **about)


def _columns(kind: str, names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    return {name: f"{kind}.{name}" if name in taken else name for name in names}


def _known(row: Row, metric: str) -> float | None:
    value = row.metrics.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _typed(values: Sequence[Any]) -> pyarrow.Array:
    """Whole numbers where all are, else numbers, else text: a column has one type."""
    import pyarrow

    there = [value for value in values if value is not None]
    if there and all(isinstance(value, int) and not isinstance(value, bool) for value in there):
        return pyarrow.array(values, pyarrow.int64())
    if there and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return pyarrow.array(values, pyarrow.float64())
    return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())
