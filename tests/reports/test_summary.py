import math
from dataclasses import replace

import pytest
from suites import grid, row, suite

from clipx.reports.suite_latex import escape, summary_latex
from clipx.reports.suite_markdown import summary_markdown
from clipx.reports.suite_terminal import terminal_table
from clipx.reports.summary import axis_values, matched, summarise
from clipx.tasks.intervals import mean_over_seeds

VALUES = {
    "zero-shot": lambda shots, seed: 0.5,
    "gda": lambda shots, seed: 0.6 + 0.02 * shots + 0.001 * seed**2,
    "tip": lambda shots, seed: 0.65 - 0.002 * seed,
}


def estimates(section, method):
    return [entry.estimate for entry in section.rows[method]]


def test_one_axis_is_columns_and_their_mean():
    summary = summarise(suite(grid(VALUES)))
    (section,) = summary.sections
    assert section.columns == ("shots=1", "shots=4", "mean")
    assert estimates(section, "gda")[1] == pytest.approx(mean_over_seeds([0.681, 0.684, 0.689]))
    assert estimates(section, "gda")[2] == pytest.approx(mean_over_seeds([0.651, 0.654, 0.659]))
    assert summary.methods == ("gda", "tip", "zero-shot")
    assert [entry.place for entry in section.rows["gda"]] == [2, 1, 1]
    assert [entry.place for entry in section.rows["zero-shot"]] == [0, 0, 0]
    gain = summary.comparisons["gda"]
    assert gain.pairs == 6
    assert gain.difference.value == pytest.approx(0.15 + 14 / 3000)
    assert summary.comparisons.keys() == {"gda", "tip"}


def test_a_lost_cell_takes_away_the_mean_over_conditions_and_the_rank():
    rows = [
        replace(r, status="failed", metrics={}, error="x")
        if r.method == "tip" and r.axes["shots"] == 4
        else r
        for r in grid(VALUES)
    ]
    summary = summarise(suite(rows))
    one, four, mean = summary.sections[0].rows["tip"]
    assert one.estimate.value == pytest.approx(0.646)
    assert (four.estimate, four.absence, mean.estimate) == (None, "failed", None)
    assert summary.methods[-1] == "tip"
    assert summary.left_out == ("tip",)
    assert list(summary.ranks.mean) == ["gda", "zero-shot"]
    columns, cells = terminal_table(summary)
    assert cells[-1][:4] == ("tip", "0.646 ± 0.005", "failed", "failed")
    assert columns == ("method", "shots=1", "shots=4", "mean", "vs zero-shot", "p", "time a cell")


def test_a_lost_seed_leaves_the_other_seeds():
    rows = grid(VALUES)
    rows = [r for r in rows if (r.method, r.seed, r.axes["shots"]) != ("gda", 3, 4)]
    section = summarise(suite(rows)).sections[0]
    assert estimates(section, "gda")[2] == pytest.approx(mean_over_seeds([0.651, 0.654]))
    rows = [replace(r, status="missing", metrics={}) if r.seed == 3 else r for r in grid(VALUES)]
    assert summarise(suite(rows)).sections[0].rows["gda"][0].missing == 1


def test_other_axes_are_sections_below_their_mean():
    rows = grid(VALUES, data="a") + grid({"gda": lambda s, seed: 0.3, **{"tip": VALUES["tip"]}}, data="b")
    summary = summarise(suite(rows))
    assert [section.title for section in summary.sections] == ["mean over data", "data=a", "data=b"]
    both = summary.sections[0]
    assert both.rows["zero-shot"][0].estimate is None
    assert both.rows["gda"][0].estimate.value == pytest.approx((0.62 + 14 / 3000 + 0.3) / 2)
    assert summary.comparisons["gda"].pairs == 6
    assert summary.ranks.blocks == 2


def test_shots_of_one_data_set_are_one_block_where_there_are_several():
    rows = [r for data in "abc" for r in grid(VALUES, shots=(1, 2, 4), data=data)]
    assert summarise(suite(rows)).ranks.blocks == 3
    assert summarise(suite(grid(VALUES, shots=(1, 2, 4)))).ranks.blocks == 3
    assert summarise(suite(grid(VALUES, shots=(1,)))).ranks.blocks == 3  # seeds


def test_a_single_cell_has_its_own_interval():
    summary = summarise(suite([row("gda", 0.7, seed=None), row("zero-shot", 0.5, seed=None)], x=None))
    assert summary.sections[0].columns == ("top1",)
    assert estimates(summary.sections[0], "gda")[0] == pytest.approx((0.7, 0.68, 0.72))
    assert summary.comparisons["gda"].p is None
    assert "own 95% interval" in summary.caption


def test_what_looks_equal_is_equally_good():
    rows = [row(name, value) for name, value in {"a": 0.7001, "b": 0.7004, "c": 0.69}.items()]
    section = summarise(suite(rows, baseline=None)).sections[0]
    assert [section.rows[name][0].place for name in "abc"] == [1, 1, 2]


def test_a_metric_that_falls():
    rows = [replace(r, metrics={"nll": 1 - r.metrics["top1"]}) for r in grid(VALUES)]
    summary = summarise(suite(rows, metric="nll"))
    assert summary.methods[0] == "gda"
    assert summary.sections[0].rows["tip"][0].place == 1
    assert list(summary.ranks.mean)[-1] == "zero-shot"
    assert "lower is better" in summary.caption


def test_several_metrics_are_a_table_of_their_own():
    rows = [
        replace(
            each, metrics={**each.metrics, "centroid_distance": 1 - each.metrics["top1"]}, seconds=25.0 * seed
        )
        for method, top1 in {"gda": 0.8, "zero-shot": 0.5}.items()
        for seed in (1, 2)
        for each in [row(method, top1, seed=seed)]
    ]
    table = replace(suite(rows, x=None), metrics=("top1", "centroid_distance", "seconds", "lost"))
    found = summarise(table)
    assert found.measures.columns == table.metrics
    first, distance, seconds, lost = found.measures.rows["gda"]
    assert (first.figure, distance.figure, seconds.figure) == ("0.800", "0.200", "37.5")
    assert (first.place, distance.place) == (1, 1)  # of a distance the smaller is the better
    assert (lost.estimate, lost.absence) == (None, "missing")
    assert found.tables == (*found.sections, found.measures)
    text = summary_markdown(found)
    assert "| method | top1 | centroid\\_distance | seconds | lost |" in text
    assert "| gda | **0.800** ± 0.000 | **0.200** ± 0.000 |" in text
    columns, printed = terminal_table(found)
    assert columns[:5] == ("method", *table.metrics)
    assert printed[0][:3] == ("gda", "0.800", "0.200")


def test_matching_needs_the_same_axes_and_seed():
    rows = [
        row("a", 0.1, shots=1),
        row("b", 0.2, shots=1.0),
        row("a", 0.3, shots=2),
        row("b", 0.4, seed=2, shots=2),
    ]
    assert matched(rows, "top1", "a", "b") == [(0.1, 0.2)]
    rows.append(row("b", math.nan, shots=2))
    assert len(matched(rows, "top1", "a", "b")) == 1


def test_axis_values_are_in_order():
    rows = [row("a", 1, shots=shots) for shots in (16, None, 2, "all", 4)]
    assert axis_values(rows, "shots") == [2, 4, 16, None, "all"]


def test_markdown_marks_and_escapes():
    rows = [replace(r, method=r.method.replace("tip", "tip|_x_")) for r in grid(VALUES)]
    text = summary_markdown(summarise(suite(rows, title="A *title*")))
    assert text.startswith("# A \\*title\\*\n")
    assert "| gda | <ins>0.625</ins> ± 0.010 | **0.685** ± 0.010 |" in text
    assert "| tip\\|\\_x\\_ | **0.646** ± 0.005 |" in text
    assert "+0.155 ± 0.035 \\*" in text
    assert "paired t-test (two-sided), Holm-corrected over 2 methods" in text


def test_latex_marks_and_escapes():
    rows = [replace(r, method=r.method.replace("tip", "tip_&")) for r in grid(VALUES)]
    text = summary_latex(summarise(suite(rows, title="100% of {x}")))
    assert "\\caption{100\\% of \\{x\\}." in text
    assert "tip\\_\\& & \\textbf{0.646} {\\scriptsize$\\pm$0.005} & \\underline{0.646}" in text
    assert "+0.155 {\\scriptsize$\\pm$0.035}$^{*}$ \\\\" in text
    assert "zero-shot & 0.500 {\\scriptsize$\\pm$0.000} & 0.500" in text
    columns = {line.count(" & ") for line in text.splitlines() if line.endswith("\\\\")}
    assert columns == {4}
    assert text.count("{") == text.count("}")


def test_every_special_letter_of_latex_is_escaped():
    assert escape("\\{}$&#^_~%<>") == (
        "\\textbackslash{}\\{\\}\\$\\&\\#\\textasciicircum{}\\_\\textasciitilde{}\\%\\textless{}\\textgreater{}"
    )
