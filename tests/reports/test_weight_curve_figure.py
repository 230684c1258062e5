import pytest

from clipx.errors import ClipxError
from clipx.reports.figures import save
from clipx.reports.weight_curve import weight_curve

ALPHAS = [0.0, 0.25, 0.5, 1.0]
SERIES = {"scenes": [0.4, 0.7, 0.8, 0.85], "shift_sketch": [0.6, 0.7, 0.65, 0.5]}


def test_accuracy_over_alpha_and_against_the_other(tmp_path):
    figure = weight_curve(ALPHAS, SERIES, against=("scenes", "shift_sketch"), chosen=0.25, title="model")
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == list(SERIES.values())
    chord, path = right.lines[:2]
    assert list(path.get_xdata()) == SERIES["scenes"]
    assert list(path.get_ydata()) == SERIES["shift_sketch"]
    assert (list(chord.get_xdata()), list(chord.get_ydata())) == ([0.4, 0.85], [0.6, 0.5])
    assert {text.get_text() for text in right.texts} == {"0", "0.25", "0.5", "1"}
    assert save(figure, tmp_path / "curve.png").stat().st_size > 10_000


def test_alphas_that_fall_together_are_written_apart():
    flat = {"scenes": [0.5] * 4, "shift_sketch": [0.6] * 4}
    figure = weight_curve(ALPHAS, flat, against=("scenes", "shift_sketch"), chosen=0.25)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[1].texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


def test_without_other_data_there_is_one_panel():
    (axes,) = weight_curve(ALPHAS, {"scenes": SERIES["scenes"]}).axes
    assert axes.get_xlabel().startswith("alpha")


def test_nothing_to_draw():
    with pytest.raises(ClipxError, match="no values"):
        weight_curve([], {})
