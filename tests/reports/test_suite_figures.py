import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from suites import grid, row, suite

from clipx.reports.class_map import class_map, read_recalls
from clipx.reports.cost_figure import cost, pareto
from clipx.reports.drawings import drawings
from clipx.reports.rank_figures import cliques, critical_difference, enough_blocks, mean_ranks
from clipx.reports.significance import Ranks, rank_methods
from clipx.reports.suite_figures import method_styles, panels, points
from clipx.reports.summary import summarise
from clipx.reports.svg import inline_svg
from clipx.tasks.intervals import Estimate


def estimate(value):
    return Estimate(value, value - 0.1, value + 0.1)


def test_styles_tell_methods_apart_and_the_baseline_is_grey():
    methods = [f"m{place}" for place in range(29)]
    styles = method_styles(methods, "m3")
    assert len({tuple(map(str, look.values())) for look in styles.values()}) == 29
    assert all(look["color"] != styles["m3"]["color"] for name, look in styles.items() if name != "m3")


def test_curves_have_bands_gaps_and_a_legend_without_repeats():
    parts = {
        "one": {"a": [estimate(0.5), None, estimate(0.7)], "b": [None, None, None]},
        "two": {"a": [estimate(0.1)] * 3},
    }
    styles = method_styles(["a", "b"], "b")
    figure = panels(parts, [1, 4, 16], xlabel="shots", ylabel="top1", styles=styles)
    first, second = [axes for axes in figure.axes if axes.get_visible()]
    assert [line.get_xydata().tolist() for line in first.lines] == [[[1, 0.5], [16, 0.7]]]
    assert first.collections[0].get_datalim(first.transData).y0 == pytest.approx(0.4)
    assert (first.get_title("left"), second.get_title("left")) == ("one", "two")
    assert first.get_xscale() == "log"
    four = panels(dict.fromkeys("uvwx", parts["one"]), [1, 4, 16], xlabel="shots", ylabel="", styles=styles)
    assert [axes.get_xlabel() for axes in four.axes[:4]] == ["", "shots", "shots", "shots"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a"]
    assert panels(parts, [0, 1, 2], xlabel="", ylabel="", styles=styles).axes[0].get_xscale() == "linear"


def test_many_methods_have_no_bands_that_would_hide_each_other():
    methods = [f"m{place}" for place in range(9)]
    styles = method_styles(methods, None)
    drawn = {
        count: panels(
            {"": {m: [estimate(0.5)] * 3 for m in methods[:count]}},
            [1, 4, 16],
            xlabel="",
            ylabel="",
            styles=styles,
        )
        for count in (8, 9)
    }
    assert [len(figure.axes[0].collections) for figure in drawn.values()] == [8, 0]
    assert len(drawn[9].axes[0].lines) == 9


def test_points_stand_on_the_baseline_where_they_equal_it():
    figure = points(
        {"a": estimate(0.7), "b": estimate(0.5)}, xlabel="top1", baseline="b", styles=method_styles("ab", "b")
    )
    line, *drawn = figure.axes[0].lines
    assert set(line.get_xdata()) == {0.5}
    assert drawn[0].get_xdata().tolist() == pytest.approx([0.6, 0.8])


def test_cliques_are_the_widest_runs():
    assert cliques([1, 2, 3, 5, 5.5], 1.5) == [(0, 1), (1, 2), (3, 4)]
    assert cliques([1, 2, 3], 5) == [(0, 2)]
    assert cliques([1, 3, 5], 1) == []


@pytest.mark.parametrize("count", [3, 4, 11])
def test_a_critical_difference_diagram_names_every_method_once(count):
    values = np.random.default_rng(0).random((20, count)) + np.arange(count) * 0.2
    ranks = rank_methods(values, [f"method {place}" for place in range(count)])
    assert enough_blocks(ranks)
    figure = critical_difference(ranks)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    named = [text for text in figure.axes[0].texts if text.get_text().startswith("method")]
    assert len(named) == count
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in named]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_without_blocks_there_are_only_ranks():
    few = Ranks({"a": 1.0, "b": 2.0, "c": 3.0}, 3, 0.1, 1.9)
    assert not enough_blocks(few)
    assert not enough_blocks(Ranks({"a": 1.0, "b": 2.0}, 50, None, None))
    assert [text.get_text() for text in mean_ranks(few).axes[0].texts] == ["1.00", "2.00", "3.00"]
    with pytest.raises(ValueError, match="no critical difference"):
        critical_difference(Ranks({"a": 1.0}, 1, None, None))


def test_the_front_is_what_nothing_beats():
    figures = {
        "slow": (9.0, 0.9),
        "bad": (2.0, 0.5),
        "quick": (1.0, 0.6),
        "twin": (1.0, 0.55),
        "late": (10.0, 0.9),
    }
    assert pareto(figures, lower_is_better=False) == ["quick", "slow"]
    assert pareto(figures, lower_is_better=True) == ["twin", "bad"]


def test_names_of_costs_do_not_lie_on_each_other():
    generator = np.random.default_rng(1)
    figures = {
        f"method {place}": (float(np.exp(t)), float(v))
        for place, (t, v) in enumerate(generator.random((10, 2)))
    }
    figure = cost(figures, ylabel="top1", lower_is_better=False, styles=method_styles(list(figures), None))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == 10
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))


def test_the_class_map_keeps_the_classes_that_differ():
    values = np.zeros((2, 80))
    values[1, 70] = 0.4
    values[0, 3] = np.nan
    figure = class_map(values, ["a", "b"], [f"c{place}" for place in range(80)], difference_to="zero-shot")
    names = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert len(names) == 50
    assert "c70" in names
    small = class_map(np.array([[0.25, 0.5]]), ["a"], ["x", "y"], difference_to=None)
    assert [text.get_text() for text in small.axes[0].texts] == ["0.25", "0.50"]


def per_class(folder, run, recalls):
    path = folder / run / "per_class.csv"
    path.parent.mkdir(parents=True)
    lines = "".join(f"{name},10,{recall}\n" for name, recall in recalls.items())
    path.write_text("class,support,recall\n" + lines)


def test_class_differences_are_taken_cell_by_cell(tmp_path):
    rows = []
    for method, base in {"zero-shot": 0.5, "gda": 0.7}.items():
        for seed in (1, 2):
            run = f"runs/{method}-{seed}"
            rows.append(replace(row(method, base, seed=seed, shots=1), run=run))
            per_class(tmp_path, run, {"ant": base + 0.01 * seed, "bee": base})
    rows.append(row("lonely", 0.3, seed=9, shots=1))
    table = suite(rows)
    drawn = {each.name: each for each in drawings(table, summarise(table), tmp_path)}
    assert drawn.keys() == {"methods", "cost", "classes"}  # no seed was run by all: no ranks
    values = np.asarray(drawn["classes"].figure.axes[0].images[0].get_array())
    assert values == pytest.approx(np.array([[0.2, 0.2]]))
    assert read_recalls(tmp_path / "nowhere") == {}
    assert read_recalls(tmp_path / "runs/gda-1/per_class.csv") == {"ant": 0.71, "bee": 0.7}


def test_the_grid_decides_which_figures_there_are(tmp_path):
    values = {
        "zero-shot": lambda s, seed: 0.5,
        "gda": lambda s, seed: 0.6 + seed / 100,
        "b": lambda s, seed: 0.7,
    }
    one = suite(grid(values))
    assert [each.name for each in drawings(one, summarise(one), tmp_path)] == ["curves", "ranks", "cost"]
    many = suite([r for data in "uvwxyz" for r in grid(values, data=data)])
    found = {each.name: each for each in drawings(many, summarise(many), tmp_path)}
    assert list(found) == ["curves", "curves_each", "ranks", "cost"]
    assert "Nemenyi" in found["ranks"].caption
    failed = suite([row("gda", None, status="failed", error="x")])
    assert list(drawings(failed, summarise(failed), tmp_path)) == []


def test_svg_takes_the_colours_of_the_page():
    figure = points({"a$b": estimate(0.7)}, xlabel="<top1>", styles=method_styles(["a$b"], None))
    svg = inline_svg(figure, prefix="f1", label='a "label" & more')
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "label" & more'
    assert "width" not in root.attrib
    assert "var(--line-1)" in svg
    assert "var(--ink)" in svg
    assert "<style" not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert ids
    assert all(each.startswith("f1-") for each in ids)
    assert set(re.findall(r'href="#([^"]*)"', svg)) <= set(ids)
    assert inline_svg(figure, prefix="f1", label='a "label" & more') == svg
