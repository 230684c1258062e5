import csv
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
from suites import row, suite

from clipx.errors import ClipxError
from clipx.reports import tidy

MIXED = [
    row("gda", 0.7, shots=1, data="scenes", lr=1, clash=1),
    row("gda", None, status="failed", error='no\nroom, "here"', shots=None, data=4, lr=0.5, clash=2),
]


@pytest.fixture
def table():
    first, second = MIXED
    first = replace(first, metrics={"top1": 0.7, "seconds": 3.0, "loss": float("nan")})
    second = replace(second, axes={**second.axes, "method": "x"}, seed=None)
    return suite([first, second])


def test_parquet_gives_the_suite_back(table, tmp_path):
    path = tmp_path / "results.parquet"
    path.write_bytes(tidy.parquet(tidy.tidy(table)))
    found = tidy.read(path)
    first, second = found.rows
    assert first.metrics == {"top1": 0.7, "seconds": 3.0}
    assert first.axes == {"shots": 1, "data": "scenes", "lr": 1.0, "clash": 1, "method": None}
    assert second == replace(table.rows[1], axes={**second.axes}, metrics={})
    assert second.axes == {"shots": None, "data": "4", "lr": 0.5, "clash": 2, "method": "x"}
    assert replace(found, rows=()) == replace(table, rows=())


def test_columns_that_would_clash_are_told_apart(table):
    columns = tidy.tidy(table)
    assert columns["method"].to_pylist() == ["gda", "gda"]
    assert columns["axis.method"].to_pylist() == [None, "x"]
    assert columns["seconds"].to_pylist() == [1.5, 1.5]
    assert columns["metric.seconds"].to_pylist() == [3.0, None]
    assert columns.schema.field("shots").type == pyarrow.int64()


def test_csv_is_one_row_a_cell(table):
    rows = list(csv.DictReader(tidy.csv(tidy.tidy(table)).decode().splitlines(keepends=True)))
    assert [each["status"] for each in rows] == ["completed", "failed"]
    assert rows[1]["error"] == 'no\nroom, "here"'
    assert "config" not in rows[0]
    assert rows[0]["loss"] == ""


def test_what_is_no_suite_is_refused(tmp_path):
    with pytest.raises(ClipxError, match="there is no"):
        tidy.read(tmp_path / "results.parquet")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ClipxError, match="cannot read"):
        tidy.read(tmp_path / "text")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(ClipxError, match="not the table of a suite"):
        tidy.read(tmp_path / "other")
