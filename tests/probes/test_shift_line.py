"""Effective robustness on the worked case of the literature's definitions, in float64."""

import numpy as np
import pytest

from clipx.errors import ClipxError
from clipx.probes.shift_line import (
    bounded,
    corruption_error,
    effective_robustness,
    explained,
    line,
    linked,
    read_points,
    unlinked,
)

CLEAN, SHIFTED = [0.6, 0.7, 0.8], [0.45, 0.57, 0.70]


def test_the_line_and_what_lies_above_it():
    fitted = line(CLEAN, SHIFTED)
    assert (float(fitted.slope), float(fitted.intercept)) == pytest.approx((1.067751, -0.629792), abs=1e-6)
    assert float(effective_robustness(0.7, 0.68, fitted)) == pytest.approx(0.111702, abs=1e-6)
    probit = line(CLEAN, SHIFTED, "probit")
    assert float(effective_robustness(0.7, 0.68, probit)) == pytest.approx(0.110657, abs=1e-6)
    assert explained(CLEAN, SHIFTED, fitted) == pytest.approx(1, abs=5e-3)


def test_it_is_the_least_squares_line():
    x, y = np.random.default_rng(0).uniform(0.1, 0.9, (2, 9))
    fitted = line(x, y)
    assert (float(fitted.slope), float(fitted.intercept)) == pytest.approx(
        np.polyfit(linked(x), linked(y), 1)
    )
    assert explained(x, y, fitted) == pytest.approx(np.corrcoef(linked(x), linked(y))[0, 1] ** 2)


def test_several_fits_at_once_are_each_their_own():
    x, y = np.random.default_rng(1).uniform(0.1, 0.9, (2, 5, 4))
    together = line(x, y)
    for place in range(5):
        alone = line(x[place], y[place])
        assert together.slope[place] == pytest.approx(float(alone.slope))
        assert together.intercept[place] == pytest.approx(float(alone.intercept))


def test_equal_baselines_have_no_slope():
    assert np.isnan(line([0.5, 0.5, 0.5], SHIFTED).slope)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_a_link_is_undone(link):
    values = np.array([0.001, 0.3, 0.5, 0.97])
    np.testing.assert_allclose(unlinked(linked(values, link), link), values, atol=1e-12)
    assert np.isfinite(linked(bounded([0.0, 1.0], 50), link)).all()
    np.testing.assert_allclose(bounded([0.0, 0.4, 1.0], 50), [0.01, 0.4, 0.99])


def test_corruption_error_is_relative_to_a_reference():
    errors, reference = [[0.2, 0.4], [0.3, 0.5]], [[0.4, 0.8], [0.6, 0.9]]
    assert corruption_error(errors, reference) == pytest.approx(0.516667, abs=1e-6)
    assert corruption_error(reference, reference) == 1
    assert np.isnan(corruption_error(errors, [[0.4, 0.8], [0.0, 0.0]]))


def test_points_are_read_by_shift(tmp_path):
    file = tmp_path / "points.csv"
    file.write_text("model,clean,sketch,v2\na,0.6,0.45,0.5\nb,0.7,,0.6\nc,0.8,0.7,0.66\n")
    found = read_points(str(file), ["sketch", "v2"])
    assert found["sketch"][0].tolist() == [0.6, 0.8]
    assert found["v2"][1].tolist() == [0.5, 0.6, 0.66]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean,v2\n0.6,0.5\n", "no column sketch"),
        ("clean,sketch\n76.2,0.5\n", "accuracy '76.2'"),
        ("clean,sketch\n0.6,many\n", "accuracy 'many'"),
        ("", "no column clean, sketch"),
        (None, "cannot read the points"),
    ],
)
def test_points_that_are_none(tmp_path, text, message):
    file = tmp_path / "points.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ClipxError, match=message):
        read_points(str(file), ["sketch"])
