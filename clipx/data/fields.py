"""Every field a batch may hold: its name, shape, dtype and meaning, once.

An *example* is what a source yields (Python objects, one item); a *batch* is what a model sees (tensors).
Objectives and tasks say which batch fields they ``need``; ``check_fields`` turns a missing one into an error
before the first step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from clipx.errors import ClipxError

UNLABELLED = -1
"""Label of an example that has no single class (a scene of three objects, a captioned photograph)."""


class Example(TypedDict, total=False):
    """One item of a source.

    ``image`` is a PIL image of any mode and size, or uint8 ``[H, W, 3]``; ``captions`` is non-empty where the
    data has captions; ``label`` is an index into the source's ``classes`` or ``UNLABELLED``; ``id`` names the
    item stably across runs (a path, a row, a key).
    """

    image: Any
    captions: list[str]
    label: int
    id: str
    negative_captions: NotRequired[list[str]]
    negative_image: NotRequired[Any]
    boxes: NotRequired[Any]
    masks: NotRequired[Any]
    depth: NotRequired[Any]


@dataclass(frozen=True)
class Field:
    """A named tensor of a batch."""

    name: str
    shape: str
    dtype: str
    meaning: str
    given_by: str


FIELDS = {
    field.name: field
    for field in (
        Field("image", "[B, 3, H, W]", "float32", "normalised images", "every source"),
        Field(
            "text",
            "[B, L]",
            "int64",
            "token ids of one caption an image",
            "captions, or labels and templates",
        ),
        Field(
            "label",
            "[B]",
            "int64",
            "class index, -1 where unlabelled",
            "class folders, a label column, scenes",
        ),
        Field("index", "[B]", "int64", "position of the example in its source", "every source with a length"),
        Field(
            "negative_text",
            "[B, L]",
            "int64",
            "token ids of a caption false of the image",
            "data=scenes data.negatives=true",
        ),
        Field(
            "negative_image",
            "[B, 3, H, W]",
            "float32",
            "an image the caption is false of",
            "data=scenes data.negatives=true",
        ),
        Field(
            "image_view_1", "[B, 3, H, W]", "float32", "another view of the image, see augment.view", "any"
        ),
        Field("image_view_2", "[B, 3, H, W]", "float32", "one more view of the image", "any"),
        Field("cover_view", "[B, 3, H, W]", "float32", "a crop of the image around both views of it", "any"),
        Field(
            "view_boxes",
            "[B, 2, 4]",
            "float32",
            "x0, y0, x1, y1 of image_view_1 and image_view_2 in cover_view, as shares of its sides",
            "any",
        ),
        Field("text_view_1", "[B, L]", "int64", "another view of the caption, see augment.text_view", "any"),
        Field("text_view_2", "[B, L]", "int64", "one more view of the caption", "any"),
        Field(
            "masked_text",
            "[B, D]",
            "float32",
            "embeddings of the caption with hidden words",
            "the objective clipx.objectives.masked_language.MaskedLanguage",
        ),
        Field(
            "projected_views",
            "[B, D]",
            "float32",
            "views of images and captions as heads of their own see them",
            "the objective clipx.objectives.projected_views.ProjectedViews",
        ),
        Field(
            "semantics",
            "[B, S]",
            "float32",
            "unit rows: what the caption means",
            "semantics=words, or semantics=sentences",
        ),
        Field("boxes", "[B, K, 4]", "float32", "x0, y0, x1, y1 in pixels, padded with -1", "data=scenes"),
        Field("masks", "[B, K, H, W]", "bool", "visible pixels of every object", "data=scenes"),
        Field(
            "depth", "[B, K]", "int64", "depth rank of every object, 0 nearest, padded with -1", "data=scenes"
        ),
    )
}

IMAGE_VIEWS = ("image_view_1", "image_view_2")
"""Fields that hold further views of ``image``, which any source gives."""

COVER = ("cover_view", "view_boxes")
"""Fields of the crop that holds both views, and of where they lie in it."""

TEXT_VIEWS = ("text_view_1", "text_view_2")
"""Fields that hold further views of ``text``."""

VIEWS = (*IMAGE_VIEWS, *COVER, *TEXT_VIEWS)
"""Fields that are made of any source's images and captions."""

IMAGE_FIELDS = ("image", "negative_image", *IMAGE_VIEWS, "cover_view")
"""Fields that hold images."""

TOKEN_FIELDS = ("text", "negative_text", *TEXT_VIEWS)
"""Fields that hold token ids."""


def check_fields(needs: Iterable[str], available: Iterable[str], part: str) -> None:
    """Check that a batch holds what a part needs.

    Raises:
        ClipxError: naming the part, the field, and which data would give it.
    """
    available = set(available)
    for name in needs:
        if name not in available:
            field = FIELDS.get(name)
            hint = f"{name} {field.shape} ({field.meaning}) is given by: {field.given_by}" if field else None
            raise ClipxError(f"{part} needs the field {name!r}, which this data does not give", hint=hint)
