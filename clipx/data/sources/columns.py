"""Which columns of a table hold the image, its captions and its label, and what a caption cell may be."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipx.errors import ClipxError, did_you_mean

IMAGE = (
    *(
        "image",
        "images",
        "img",
        "filepath",
        "file_path",
        "filename",
        "file_name",
        "path",
        "file",
        "image_path",
    ),
    *(
        "img_path",
        "image_file",
        "image_filename",
        "image_name",
        "image_bytes",
        "bytes",
        "jpg",
        "jpeg",
        "png",
        "webp",
    ),
)
CAPTION = (
    *(
        "caption",
        "captions",
        "text",
        "texts",
        "title",
        "sentence",
        "sentences",
        "sentences_raw",
        "description",
    ),
    *("alt_text", "alt", "raw", "comment", "prompt", "txt"),
)
LABEL = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "cls")
_INSIDE_CAPTION = (*CAPTION, "value", "en")


def find_column(
    names: Sequence[str], given: str | None, common: Sequence[str], argument: str, where: str
) -> str | None:
    """The column that was asked for, or the first with a common name.

    Args:
        names: columns of the table.
        given: what the user named; None to look for one.
        common: names to look for, the likeliest first; case and spaces around them do not matter.
        argument: the user's argument, for the error.
        where: the file, for the error.

    Returns:
        A name of ``names``, or None where nothing was asked for and nothing was found.

    Raises:
        ClipxError: the named column is not there.
    """
    if given is not None:
        if given not in names:
            raise ClipxError(
                f"{where} has no column {given!r} (data.{argument})", hint=did_you_mean(given, names)
            )
        return given
    folded = {name.strip().lower(): name for name in reversed(names)}
    return next((folded[name] for name in common if name in folded), None)


def need_column(column: str | None, argument: str, names: Sequence[str], where: str) -> str:
    """Return the column.

    Raises:
        ClipxError: there is none; the hint lists the columns.
    """
    if column is None:
        kind = argument.removesuffix("_column")
        raise ClipxError(
            f"{where} has no column that looks like the {kind}",
            hint=f"name it: data.{argument}=... one of: {', '.join(names) or 'the file has no columns'}",
        )
    return column


def spoken(captions: pa.ChunkedArray) -> np.ndarray:
    """Which rows of a column have a caption that is not blank, bool [N]."""
    if pa.types.is_string(captions.type) or pa.types.is_large_string(captions.type):
        return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(captions), ""), False).to_numpy()
    return np.array([bool(captions_of(cell)) for cell in captions.to_pylist()], bool)


def captions_of(cell: Any) -> list[str]:
    """The captions in a cell.

    Args:
        cell: a string, a dict with a caption field, a list of either, or None.

    Returns:
        Captions without blank ones and without spaces around them; empty where there is none.
    """
    if cell is None:
        return []
    if isinstance(cell, str):
        text = cell.strip()
        return [text] if text else []
    if isinstance(cell, bytes):
        return captions_of(cell.decode("utf-8", "replace"))
    if isinstance(cell, dict):
        field = next((name for name in _INSIDE_CAPTION if name in cell), None)
        return captions_of(cell[field]) if field else []
    if isinstance(cell, list | tuple):
        return [caption for item in cell for caption in captions_of(item)]
    return []
