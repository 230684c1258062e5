"""Figures of probes: which panels there are, and what is in them."""

import numpy as np
import pytest
import torch

from clipx.probes.shift_line import line, linked
from clipx.reports.probe_figures import sweep_and_curve
from clipx.reports.robustness_figures import effective, outside, reliabilities
from clipx.tasks.calibration import reliability
from clipx.tasks.intervals import Estimate, proportion

TOPS = {"sgd": proportion(80, 100), "zero-shot": proportion(40, 100)}
SWEEP = {"sgd": {0.1: 0.6, 1.0: 0.8, 10.0: 0.7}}


@pytest.mark.parametrize(
    ("curve", "panels"), [({100.0: TOPS["sgd"]}, 2), ({1: TOPS["zero-shot"], 100.0: TOPS["sgd"]}, 3)]
)
def test_a_learning_curve_of_one_point_has_no_panel(curve, panels):
    figure = sweep_and_curve(SWEEP, curve=curve, tops=TOPS)
    assert len(figure.axes) == panels
    assert figure.axes[0].lines[1].get_xdata()[0] == 1.0  # the best of the sweep is marked
    assert [each.get_text() for each in figure.axes[-1].get_yticklabels()] == ["sgd", "zero-shot"]


def test_the_star_stands_where_the_model_does_and_the_line_where_the_baselines_do():
    clean, shifted = np.array([0.6, 0.7, 0.8]), np.array([0.45, 0.57, 0.7])
    fitted = line(clean, shifted)
    pair = (proportion(70, 100), proportion(80, 100))
    figure = effective(
        {"blur": (clean, shifted, 0.7, 0.68)},
        {"blur": fitted},
        {"blur": Estimate(0.11, 0.05, 0.2)},
        {"clean": pair, "blur": pair},
    )
    scatter, tops, rho = figure.axes
    points, star = (each.get_offsets() for each in scatter.collections)
    np.testing.assert_allclose(points.T, linked([clean, shifted]))
    np.testing.assert_allclose(star[0], linked([0.7, 0.68]))
    x, y = scatter.lines[0].get_data()
    np.testing.assert_allclose(y, fitted.slope * x + fitted.intercept, atol=1e-9)
    assert [each.get_text() for each in tops.get_yticklabels()] == ["clean", "blur"]
    assert [each.get_text() for each in rho.texts] == ["0.110"]


def test_a_reliability_diagram_a_panel():
    diagram = reliability(torch.tensor([0.95, 0.3]), torch.tensor([True, False]))
    figure = reliabilities({"clean": diagram, "scaled": diagram})
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title(loc="left") == "clean: ECE 0.175"
    assert figure.axes[0].lines[1].get_ydata().tolist() == [0, 1]


def test_two_panels_for_all_that_is_outside():
    scores = np.linspace(0, 1, 50)
    figure = outside(
        {"unseen": (scores, scores / 2), "digits": (scores, scores)},
        {name: {"mcm": Estimate(0.7, 0.6, 0.8)} for name in ("unseen", "digits")},
        score="mcm",
    )
    assert len(figure.axes) == 4
    shares = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    assert shares == pytest.approx([1, 1, 1, 1])
