"""How a CLIP compares an image with a text: what a comparison knows, and which there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError, did_you_mean
from clipx.models.geometry import COSINE, GEOMETRIES, Geometry
from clipx.models.mixture import KIND as MIXTURE
from clipx.models.mixture import Mixture

KINDS = (*GEOMETRIES, MIXTURE)
"""Kinds of comparison."""


class Comparison(Protocol):
    """What a CLIP asks: from its towers to rows, and from rows to scores.

    A row ``[F]`` is all that is stored of an image or a text. Images and texts may have rows of different
    widths. ``kind`` is one of ``KINDS``; ``spec`` are the settings it is built from; ``one_vector`` says that
    an image is one vector, which knows of no text.
    """

    kind: str
    spec: dict[str, Any]
    one_vector: bool

    def image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """What an open_clip model makes of normalised images ``[B, 3, H, W]``, not yet rows."""

    def text_features(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What an open_clip model makes of token ids ``[B, L]``, not yet rows."""

    def image_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, F]``, float32 or better, of what ``image_features`` gave."""

    def text_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, F]``, float32 or better, of what ``text_features`` gave."""

    def check(self, image: Tensor, text: Tensor) -> None:
        """Raise a ``ClipxError`` where rows ``[M, F]`` and ``[N, F]`` are not such that compare."""

    def image_to_text(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the similarity ``[M, N]`` of image rows ``[M, F]`` and text rows ``[N, F]``."""

    def text_to_image(self, text: Tensor, image: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """The same ``[N, M]``, a row a text."""

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """The same ``[B]`` of each image ``[B, F]`` and the text of the same row ``[B, F]``."""

    def mean_of_texts(self, rows: Tensor) -> Tensor:
        """The row that stands for several texts: ``[C, F]`` of ``[C, T, F]``."""

    def pooled_images(self, rows: Tensor) -> Tensor:
        """Unit vectors ``[N, D]`` of image rows ``[N, F]``, for what compares images with images."""

    def clamp(self) -> None:
        """Keep what is learnt within its bounds; called after every optimizer step."""


def attach(model: nn.Module, spec: Mapping[str, Any], width: int) -> Comparison:
    """Give an open_clip model, in place, a comparison with fresh parameters.

    Args:
        model: an open_clip ``CLIP`` or ``CustomTextCLIP``.
        spec: ``kind``, one of ``KINDS``, and the settings of ``Geometry`` or ``Mixture``.
        width: D of the embeddings.

    Raises:
        ClipxError: an unknown kind or setting, one out of its range, or towers that it does not go with.
    """
    settings = dict(spec)
    kind = str(settings.pop("kind", None))
    if kind not in KINDS:
        raise ClipxError(f"there is no comparison {kind!r}", hint=did_you_mean(kind, KINDS))
    before = getattr(model, "comparison", COSINE)
    if not before.one_vector:
        raise ClipxError(f"a model that compares by {before.kind} has no other comparison")
    try:
        made: Any = (
            Mixture.of(model, width, **settings) if kind == MIXTURE else Geometry(kind, width, **settings)
        )
    except TypeError as error:
        raise ClipxError(f"model.comparison of kind {kind}: {str(error).partition('() ')[2]}") from error
    weight = next(model.parameters())
    with torch.no_grad():
        model.comparison = made.to(weight.device)
    return made


def check_cosine(comparison: Comparison, what: str, hint: str) -> None:
    """Check that a model compares by the cosine, for a part that computes dot products of unit rows.

    Args:
        comparison: of the model.
        what: the part, as the message names it.
        hint: what works instead.

    Raises:
        ClipxError: naming the comparison.
    """
    if comparison.kind != COSINE.kind:
        raise ClipxError(
            f"{what} compares unit vectors by their cosine, this model compares by {comparison.kind}",
            hint=hint,
        )
