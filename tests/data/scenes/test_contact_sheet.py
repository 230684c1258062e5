"""The contact sheet: every example on the page with its captions, whatever the source yields."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clipx.data.scenes.contact_sheet import CELL, draw, wrap
from clipx.data.sources.scenes import Scenes
from clipx.errors import BadSample, ClipxError


def test_a_sheet_is_written_with_its_columns(tmp_path: Path) -> None:
    path = draw(Scenes(negatives=True, language=["en", "zh"]), 5, tmp_path / "new" / "sheet.png", columns=3)
    image = Image.open(path)
    assert image.format == "PNG"
    assert image.width > 3 * CELL
    assert image.height > 2 * CELL
    narrow = Image.open(draw(Scenes(), 4, tmp_path / "narrow.png", columns=1))
    assert narrow.width < image.width
    assert narrow.height > 4 * CELL


def test_pictures_of_the_source_are_on_the_page(tmp_path: Path) -> None:
    source = Scenes(image_size=CELL)
    page = np.asarray(Image.open(draw(source, 1, tmp_path / "one.png")))
    image = source[0]["image"]
    assert any(
        np.array_equal(page[row : row + CELL, column : column + CELL], image)
        for row in range(20, 60)
        for column in range(20, 60)
    )


def test_any_source_can_be_drawn_and_bad_samples_are_passed_over(tmp_path: Path) -> None:
    class Photos:
        classes = ["cat", "dog"]

        def __len__(self) -> int:
            return 3

        def examples(self, indices: object) -> list:
            return [
                {"image": Image.new("L", (30, 10)), "captions": [], "label": 1, "id": "a"},
                BadSample("truncated"),
                {"image": Image.new("RGBA", (10, 30)), "captions": [], "label": -1, "id": "b"},
            ]

    assert Image.open(draw(Photos(), 9, tmp_path / "photos.png")).width < 3 * CELL


def test_captions_are_wrapped_to_the_picture() -> None:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = "a small red circle to the left of a large blue checkered square"
    lines = wrap(text, pen, CELL)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert "".join(wrap("一个红色的圆形" * 5, pen, CELL)) == "一个红色的圆形" * 5


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClipxError, match="columns"):
        draw(Scenes(), 4, tmp_path / "x.png", columns=0)
