"""A contact sheet: examples of any source as a page of pictures with their captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipx.errors import BadSample, ClipxError

CELL = 168
PADDING = 10
GAP = 16
BORDER = 28
TEXT = 13
LINE = 16
BETWEEN = 5
PAGE, CARD, EDGE, INK, FAINT = (
    (240, 241, 244),
    (255, 255, 255),
    (222, 224, 230),
    (38, 42, 52),
    (138, 144, 158),
)
WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
)
"""Fonts with Chinese letters, by the names under which systems have them; Pillow's own has none."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(source: Any, count: int, path: str | Path, columns: int = 6) -> Path:
    """Draw the first examples of a source as a page of pictures with captions beneath.

    Args:
        source: a map-style source.
        count: how many examples; fewer where the source has fewer.
        path: PNG file to write; its folder is made.
        columns: pictures a row.

    Returns:
        The path written.

    Raises:
        ClipxError: count or columns below 1, or no example that can be shown.
    """
    if count < 1 or columns < 1:
        raise ClipxError(
            f"a contact sheet cannot have {count} pictures in {columns} columns", hint="at least 1 of each"
        )
    examples = [
        example
        for example in source.examples(range(min(count, len(source))))
        if not isinstance(example, BadSample)
    ]
    if not examples:
        raise ClipxError("there is no example to draw", hint="check the data that data= names")
    texts = [caption_of(example, getattr(source, "classes", None)) for example in examples]
    sheet = page([as_image(example["image"]) for example in examples], texts, columns)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def as_image(image: Any) -> Image.Image:
    """A PIL image of any mode, or uint8 [H, W, 3], as RGB."""
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")


def caption_of(example: Any, classes: Sequence[str] | None) -> list[tuple[str, bool]]:
    """The lines beneath an example: every caption, then what is false of it, which is shown faint."""
    lines = [(text, False) for text in example.get("captions", [])]
    label = example.get("label", -1)
    if not lines and classes and label >= 0:
        lines = [(classes[label], False)]
    lines += [(f"not: {text}", True) for text in example.get("negative_captions", [])]
    return lines or [(str(example.get("id", "")), True)]


def page(images: Sequence[Image.Image], texts: Sequence[list[tuple[str, bool]]], columns: int) -> Image.Image:
    """Pictures on white cards, row by row, every row as high as its longest caption needs."""
    columns = min(columns, len(images))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    wrapped = [_laid_out(lines, measure) for lines in texts]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [max(wrapped[number][-1][2] for number in row) + LINE + CELL + 3 * PADDING for row in rows]
    card_width = CELL + 2 * PADDING
    width = 2 * BORDER + columns * card_width + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, 2 * BORDER + sum(heights) + (len(rows) - 1) * GAP), PAGE)
    pen, top = ImageDraw.Draw(sheet), BORDER
    for row, height in zip(rows, heights, strict=True):
        for column, number in enumerate(row):
            left = BORDER + column * (card_width + GAP)
            pen.rounded_rectangle((left, top, left + card_width, top + height), 9, fill=CARD, outline=EDGE)
            sheet.paste(fit(images[number]), (left + PADDING, top + PADDING))
            for line, faint, down in wrapped[number]:
                where = left + PADDING, top + CELL + 2 * PADDING + down
                pen.text(where, line, font=font_for(line), fill=FAINT if faint else INK)
        top += height + GAP
    return sheet


def _laid_out(texts: Sequence[tuple[str, bool]], pen: ImageDraw.ImageDraw) -> list[tuple[str, bool, int]]:
    """Lines with how far down each stands, a little space between one caption and the next."""
    lines, down = [], 0
    for text, faint in texts:
        for line in wrap(text, pen, CELL):
            lines.append((line, faint, down))
            down += LINE
        down += BETWEEN
    return lines


def fit(image: Image.Image) -> Image.Image:
    """The image within a square cell, smoothly scaled, centred on white."""
    scale = CELL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    cell = Image.new("RGB", (CELL, CELL), CARD)
    cell.paste(image.resize(size, Image.Resampling.BICUBIC), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def font_for(text: str) -> Font:
    """A font that has the letters of the text, as far as this system has one."""
    if any(ord(letter) >= 0x2E80 for letter in text):
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, TEXT)
            except OSError:
                continue
    return ImageFont.load_default(TEXT)


def wrap(text: str, pen: ImageDraw.ImageDraw, width: int) -> list[str]:
    """The text in lines no wider than ``width`` pixels, broken at spaces, or anywhere where it has none."""
    font, lines, line = font_for(text), [], ""
    joint = " " if " " in text else ""
    for word in text.split(" ") if joint else list(text):
        longer = f"{line}{joint}{word}" if line else word
        if line and pen.textlength(longer, font=font) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]
