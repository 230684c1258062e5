"""Some items of a source for few-shot learning: as they are, or each in several augmented views.

Both are sources, so that ``encode`` embeds and keeps them like any other: what is drawn, and how it is
augmented, is part of the fingerprint.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from clipx.data.order import sample_generator
from clipx.data.transforms import STRETCHED, TrainTransform
from clipx.errors import BadSample, ClipxError
from clipx.features.selection import Selection

VIEW_SCALE = (0.5, 1.0)
"""Share of the area that a view keeps (Tip-Adapter, GDA, LP++, ProLIP, ProKeR); CoOp takes (0.08, 1)."""

_VIEW_SEED = 0


class Chosen(Selection):
    """Chosen items of a source, recognised by the store where the source is.

    Args:
        source: map-style.
        indices: places in it.
    """

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        super().__init__(source, [int(index) for index in indices])
        if hasattr(source, "fingerprint"):
            self.fingerprint = partial(_fingerprint, source, self.indices)


class Views:
    """Augmented views of chosen items, each kept as an item of its own: item ``i`` is view ``i % views`` of
    the item at ``indices[i // views]``.

    A view is a random resized crop and a mirror in half of the cases. It is a pure function of the item's
    place in its source and of the view's number: whatever draw holds the image holds the same views.

    Args:
        source: map-style.
        indices: places in it.
        views: of each image, >= 1.
        size: output side, pixels.
        scale: smallest and largest share of the area that is kept.
        flip: probability of a mirror.
        interpolation: bicubic or bilinear.

    Raises:
        ClipxError: views below 1, or what ``TrainTransform`` raises.
    """

    def __init__(
        self,
        source: Any,
        indices: Sequence[int],
        views: int,
        *,
        size: int,
        scale: tuple[float, float] = VIEW_SCALE,
        flip: float = 0.5,
        interpolation: str = "bicubic",
    ) -> None:
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ClipxError(f"views={views}: an image has one view or more", hint="views=10")
        self.source = source
        self.indices = [int(index) for index in indices]
        self.views = views
        self.classes = source.classes
        self.templates = source.templates
        self.transform = TrainTransform(
            size, (scale[0], scale[1]), STRETCHED, flip=flip, interpolation=interpolation
        )
        if hasattr(source, "fingerprint"):
            settings = (views, size, tuple(scale), flip, interpolation, _VIEW_SEED)
            self.fingerprint = partial(_fingerprint, source, self.indices, settings)

    def __len__(self) -> int:
        return len(self.indices) * self.views

    def __getitem__(self, index: int) -> Any:
        """One view; raises ``BadSample`` where the image cannot be used."""
        example = self.examples([index])[0]
        if isinstance(example, BadSample):
            raise example
        return example

    def examples(self, indices: Sequence[int]) -> list[Any]:
        """Views by number: examples with image uint8 ``[size, size, 3]``; an image is opened once a call."""
        places = [self.indices[index // self.views] for index in indices]
        distinct = list(dict.fromkeys(places))
        opened = dict(zip(distinct, self.source.examples(distinct), strict=True))
        return [
            self._view(opened[place], place, index % self.views)
            for index, place in zip(indices, places, strict=True)
        ]

    def _view(self, example: Any, place: int, view: int) -> Any:
        if isinstance(example, BadSample):
            return example
        try:
            pixels = self.transform(example["image"], sample_generator(_VIEW_SEED, view, place))
        except BadSample as bad:
            return bad
        return {**example, "image": np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), "captions": []}


def _fingerprint(source: Any, indices: Sequence[int], settings: tuple[Any, ...] = ()) -> str:
    content = repr((source.fingerprint(), indices, settings))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
