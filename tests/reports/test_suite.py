import errno
import os
from html.parser import HTMLParser

import pytest
from PIL import Image
from suites import grid, row, suite

from clipx.errors import ClipxError
from clipx.reports.suite import write_report
from clipx.reports.tidy import read

HOSTILE = '</script><img src="https://example.com/x.png" onerror=alert(1)>&"\''


@pytest.fixture
def table():
    values = {
        "zero-shot": lambda s, seed: 0.5,
        "gda": lambda s, seed: 0.6 + seed / 100,
        HOSTILE: lambda s, seed: 0.55,
    }
    rows = grid(values)
    rows.append(row("gda", None, seed=4, shots=1, status="failed", error=HOSTILE))
    return suite(rows, title=HOSTILE)


def test_every_file_is_written_and_told(table, tmp_path):
    report = write_report(table, tmp_path / "new" / "report")
    there = {path for path in (tmp_path / "new" / "report").rglob("*") if path.is_file()}
    assert set(report.files) == there
    assert {path.name for path in there} == {
        *("results.parquet", "results.csv", "table.md", "table.tex", "report.html"),
        *("curves.png", "ranks.png", "cost.png"),
    }
    for path in there:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
    assert read(tmp_path / "new" / "report" / "results.parquet") == table
    assert report.summary_columns[0] == "method"
    assert [cells[0] for cells in report.summary_rows] == ["gda", HOSTILE, "zero-shot"]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_asks_for_nothing_and_runs_nothing_of_a_cell(table, tmp_path):
    write_report(table, tmp_path)
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert [tag for tag, _ in tags.found].count("script") == 2
    for tag, attributes in tags.found:
        assert tag not in ("img", "link", "iframe")
        assert "onerror" not in attributes
        assert not attributes.get("src")
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png"))
    assert "url(http" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_a_suite_of_failures_has_a_report(tmp_path):
    rows = [row(name, None, status="failed", error="boom", shots=1) for name in ("a", "b")]
    report = write_report(suite(rows, baseline="a"), tmp_path)
    assert report.summary_rows[0][:2] == ("a", "failed")
    assert "boom" in (tmp_path / "report.html").read_text()


def test_nothing_to_report(tmp_path):
    with pytest.raises(ClipxError, match="no cell"):
        write_report(suite([]), tmp_path)


def test_a_full_disk_is_told_and_leaves_what_was_there(table, tmp_path, monkeypatch):
    write_report(table, tmp_path)
    before = (tmp_path / "results.parquet").read_bytes()
    count = len(list(tmp_path.iterdir()))
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(ClipxError, match="No space left"):
        write_report(suite(table.rows[:4]), tmp_path)
    assert (tmp_path / "results.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == count
