from dataclasses import replace

import pytest
from suites import grid, row, suite

from clipx.errors import ClipxError
from clipx.reports.compare import COLUMNS, compare, compare_runs
from clipx.reports.suite import write_report
from clipx.tasks.intervals import mean_over_seeds

BEFORE = {"gda": lambda shots, seed: 0.6 + 0.01 * seed, "tip": lambda shots, seed: 0.5}
AFTER = {"gda": lambda shots, seed: 0.7 + 0.02 * seed * shots, "tip": lambda shots, seed: 0.5}


def test_matched_cells_give_differences_with_intervals():
    found = compare(suite(grid(BEFORE)), suite(grid(AFTER)))
    gda = found.methods["gda"]
    differences = [0.1 + 0.02 * seed * shots - 0.01 * seed for shots in (1, 4) for seed in (1, 2, 3)]
    assert gda.comparison.difference == pytest.approx(mean_over_seeds(differences))
    assert (gda.first, gda.second) == pytest.approx((0.62, 0.8))
    assert (found.matched, found.equal) == (12, 6)
    assert found.only_first == found.only_second == ()
    assert found.test == "paired t-test"
    rows = found.rows()
    assert rows[0][:4] == ("gda", "0.620", "0.800", "+0.180 *")
    assert rows[1] == ("tip", "0.500", "0.500", "+0.000", "+0.000 to +0.000", "1.000", "6")
    assert len(rows[0]) == len(COLUMNS)


def test_what_only_one_has_is_named():
    first = suite([*grid(BEFORE), row("old", 0.1, shots=1)])
    lost = [
        replace(each, status="failed", metrics={}) if each.cell == "gda-4-2" else each for each in grid(AFTER)
    ]
    second = suite([each for each in lost if each.cell != "tip-1-1"] + [row("new", 0.2, shots=1)])
    found = compare(first, second)
    assert found.only_first == (
        "gda shots=4 seed=2 (failed in the other)",
        "tip shots=1 seed=1",
        "old shots=1 seed=1",
    )
    assert found.only_second == ("new shots=1 seed=1",)
    assert found.matched == 10
    assert any(note.startswith("only in the first (3): gda shots=4") for note in found.notes())
    assert "| gda | 0.620 |" in found.markdown()


def test_an_axis_of_one_value_may_be_missing_in_the_other():
    found = compare(suite(grid(BEFORE, data="scenes")), suite(grid(AFTER)))
    assert found.matched == 12
    with pytest.raises(ClipxError, match="only the second evaluation varies data"):
        compare(suite(grid(BEFORE)), suite([each for name in "ab" for each in grid(AFTER, data=name)]))


def test_nothing_in_common_and_no_such_metric():
    found = compare(suite([row("a", 0.1)]), suite([row("b", 0.1)]))
    assert (found.matched, found.test, found.rows()) == (0, None, [])
    with pytest.raises(ClipxError, match="first evaluation has no top2") as problem:
        compare(suite([row("a", 0.1)]), suite([row("a", 0.1)]), metric="top2")
    assert "top1" in problem.value.hint


def test_runs_are_read_from_their_folders(tmp_path):
    for name, values in {"v0001": BEFORE, "v0002": AFTER}.items():
        write_report(suite(grid(values)), tmp_path / name)
    found = compare_runs(tmp_path / "v0001", tmp_path / "v0002" / "results.parquet", metric="top1")
    assert found == compare(suite(grid(BEFORE)), suite(grid(AFTER)))
    with pytest.raises(ClipxError, match="there is no"):
        compare_runs(tmp_path / "v0001", tmp_path / "v0003")
