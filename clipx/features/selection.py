"""Part of a source, as a source: evenly spread items, or what is left after the first ones."""

from collections.abc import Iterator, Sequence
from typing import Any


class Selection:
    """Some items of a map-style source, in a given order.

    Args:
        source: map-style.
        indices: of the items, each in ``[0, len(source))``.
    """

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices
        self.classes = source.classes
        self.templates = source.templates

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.indices[index]]

    def examples(self, indices: Sequence[int]) -> list[Any]:
        """The examples at these places of the selection."""
        return self.source.examples([self.indices[index] for index in indices])


class StreamRest:
    """A stream source without its first items.

    Args:
        source: stream.
        start: how many items are passed over.
    """

    def __init__(self, source: Any, start: int) -> None:
        self.source = source
        self.start = start
        self.classes = source.classes
        self.templates = source.templates

    def stream(self, *, skip: int, **share: Any) -> Iterator[Any]:
        """The items after the first ``start + skip``."""
        return self.source.stream(skip=self.start + skip, **share)


def evenly(source: Any, count: int) -> Selection:
    """At most ``count`` items, spread evenly: every class of a sorted map-style source gets its share."""
    size = len(source)
    count = min(count, size)
    return Selection(source, [place * size // count for place in range(count)])


def rest_of(source: Any, start: int) -> Any:
    """A source without its first ``start`` items."""
    if start == 0:
        return source
    if hasattr(source, "stream"):
        return StreamRest(source, start)
    return Selection(source, range(start, len(source)))
