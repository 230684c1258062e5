import errno
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clipx.errors import ClipxError
from clipx.reports import figures
from clipx.reports.figures import bars, confusion, curves, save
from clipx.tasks.intervals import proportion


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def text_boxes(figure, artists):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [artist.get_window_extent(canvas.get_renderer()) for artist in artists if artist.get_text()]


@pytest.mark.parametrize("size", [2, 12, 40, 200])
def test_confusion_names_what_fits_and_nothing_overlaps(size, tmp_path):
    names = [f"class of number {place}" for place in range(size)]
    figure = confusion(np.eye(size) * 5 + 1, names, title="a title")
    axes = figure.axes[0]
    shown = labels(axes.yaxis)
    assert shown[0] == names[0]
    assert 2 <= len(shown) <= 40
    for axis, low, high in ((axes.yaxis, "y0", "y1"), (axes.xaxis, "x0", "x1")):
        boxes = sorted(text_boxes(figure, axis.get_ticklabels()), key=lambda box: getattr(box, low))
        ends = [(getattr(box, low), getattr(box, high)) for box in boxes]
        assert all(after[0] >= before[1] - 0.5 for before, after in itertools.pairwise(ends))
    with Image.open(save(figure, tmp_path / "new" / "confusion.png")) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
        assert np.asarray(picture.convert("L")).std() > 5


def test_confusion_rows_are_shares_of_the_true_class():
    axes = confusion([[8, 2], [0, 0]], ["a", "b"]).axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.8, 0.2], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["0.80", "0.20"]


def test_confusion_draws_in_color_only_what_is_there():
    axes = confusion(np.eye(13), [str(place) for place in range(13)]).axes[0]
    assert not axes.texts


def test_curves_draw_their_points_and_name_their_ends():
    figure = curves({"a": ([0, 1, 2], [3, float("nan"), 1]), "b": ([0, 1], [1.001, 1.0])}, ylabel="loss")
    axes = figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 3], [2, 1]]
    assert [text.get_text() for text in axes.texts] == ["a  1", "b  1"]
    low, high = sorted(text_boxes(figure, axes.texts), key=lambda box: box.y0)
    assert high.y0 >= low.y1 - 1


def test_curves_smooth_without_moving_the_level():
    steps = np.arange(400)
    values = 2 + np.where(steps % 2, 1, -1)
    raw, smoothed = curves({"a": (steps, values)}, smooth=True).axes[0].lines
    assert raw.get_ydata().tolist() == values.tolist()
    assert abs(smoothed.get_ydata() - 2).max() < 0.4
    assert len(curves({"a": (steps[:10], values[:10])}, smooth=True).axes[0].lines) == 1


def test_bars_carry_values_and_intervals():
    estimates = {"top1": proportion(9, 10), "worst": proportion(0, 10)}
    axes = bars(estimates, xlabel="accuracy").axes[0]
    assert [patch.get_width() for patch in axes.patches] == [0.9, 0]
    assert [text.get_text() for text in axes.texts] == ["0.9", "0"]
    assert labels(axes.yaxis) == ["top1", "worst"]
    (segments,) = [each.get_segments() for each in axes.collections]
    assert segments[0][:, 0] == pytest.approx([estimates["top1"].low, estimates["top1"].high])


@pytest.mark.parametrize(
    "draw", [lambda: bars({}), lambda: curves({}), lambda: curves({"a": ([1], [float("nan")])})]
)
def test_nothing_to_draw(draw):
    with pytest.raises(ClipxError, match="no values to draw"):
        draw()


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    target = save(bars({"a": proportion(1, 2)}), tmp_path / "bars.png")
    before = target.read_bytes()
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(ClipxError, match="No space left"):
        save(bars({"b": proportion(1, 2)}), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipxError, match="cannot write the figure"):
        save(bars({"a": proportion(1, 2)}), tmp_path / "file" / "bars.png")


def test_matplotlib_is_not_loaded_before_a_figure_is_drawn():
    code = f"import sys, {figures.__name__}; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
