"""A table's image cell -> an image: a path, the bytes of a file, or Hugging Face's pair of both."""

from typing import Any

import pyarrow as pa
from PIL import Image

from clipx.data.images import MAX_PIXELS, open_image
from clipx.data.sources.paths import Root
from clipx.errors import BadSample


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold images as bytes, or as a struct of bytes and path."""
    if pa.types.is_struct(kind):
        names = {kind.field(index).name for index in range(kind.num_fields)}
        return "bytes" in names or "path" in names
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_paths(kind: pa.DataType) -> bool:
    """Whether a column of this type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def open_cell(cell: Any, root: Root, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image cell.

    Args:
        cell: bytes, a path, or a dict with ``bytes`` and ``path`` of which the bytes are preferred.
        root: where a path must lie.
        max_pixels: an image of more is bad.

    Raises:
        BadSample: nothing there, a path outside of the root or to nothing, or an image that cannot be
            decoded.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if not cell:
        raise BadSample("no image: the cell is empty")
    if isinstance(cell, bytes):
        return open_image(cell, max_pixels=max_pixels)
    place, reason = root.locate(str(cell))
    if place is None:
        raise BadSample(f"{reason}: {cell}")
    return open_image(root.path / place, max_pixels=max_pixels)
