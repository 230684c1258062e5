"""A source in another look: every image of it drawn in one of the styles of ``clipx.data.scenes.styles``."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from clipx.data.scenes import styles
from clipx.data.transforms import to_pil
from clipx.errors import BadSample, ClipxError, did_you_mean


class Restyled:
    """A map-style source whose images are restyled; item ``i`` is a pure function of item ``i`` and ``seed``.

    Args:
        source: map-style.
        style: one of ``styles.STYLES``.
        seed: of the style's noise.

    Raises:
        ClipxError: there is no such style, or the source is a stream.
    """

    def __init__(self, source: Any, style: str, seed: int = 0) -> None:
        if style not in styles.STYLES:
            raise ClipxError(f"there is no style {style!r}", hint=did_you_mean(str(style), styles.STYLES))
        if hasattr(source, "stream"):
            raise ClipxError("a stream cannot be restyled", hint="styles=[], or data that is not streamed")
        self.source, self.style, self.seed = source, style, seed
        self.name = f"{source.name} ({style})"
        self.classes, self.templates = source.classes, source.templates
        if hasattr(source, "fingerprint"):
            self.fingerprint = partial(_fingerprint, source, style, seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        """One item; raises ``BadSample`` where the image cannot be used."""
        example = self.examples([index % len(self)])[0]
        if isinstance(example, BadSample):
            raise example
        return example

    def examples(self, indices: Sequence[int]) -> list[Any]:
        """The items at these places, those that cannot be used as ``BadSample``."""
        return [
            example if isinstance(example, BadSample) else self._restyled(example, int(index))
            for index, example in zip(indices, self.source.examples(indices), strict=True)
        ]

    def _restyled(self, example: Any, index: int) -> Any:
        try:
            pixels = np.asarray(to_pil(example["image"]))
        except BadSample as bad:
            return bad
        square = pixels.transpose(2, 0, 1).astype(np.float32)
        # A style is made for a square; an image that is none gets it on its middle one.
        side = min(square.shape[1:])
        top, left = ((size - side) // 2 for size in square.shape[1:])
        square = square[:, top : top + side, left : left + side]
        key = int.from_bytes(
            hashlib.blake2b(repr((self.seed, index)).encode(), digest_size=8).digest(), "big"
        )
        drawn = styles.apply(self.style, square, key).round().astype(np.uint8)
        return {**example, "image": np.ascontiguousarray(drawn.transpose(1, 2, 0))}


def _fingerprint(source: Any, style: str, seed: int) -> str:
    content = repr((source.fingerprint(), "restyled", style, seed))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
