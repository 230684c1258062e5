"""A source whose captions are its labels: the class name in a prompt, whatever captions it has of its own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipx.data.fewshot import labels_of
from clipx.data.fields import UNLABELLED
from clipx.data.loading import is_stream
from clipx.errors import BadSample, ClipxError
from clipx.features.selection import Selection


class LabelledPairs(Selection):
    """The labelled items of a map-style source, without captions: a loader puts their class into prompts.

    Args:
        source: map-style.

    Raises:
        ClipxError: no item has a label.
    """

    def __init__(self, source: Any) -> None:
        super().__init__(source, np.flatnonzero(labels_of(source) != UNLABELLED).tolist())

    def examples(self, indices: Sequence[int]) -> list[Any]:
        """The examples at these places of the selection."""
        return [_bare(example) for example in super().examples(indices)]


class LabelledStream:
    """A stream source without captions; an item without a label counts as one that cannot be used.

    Args:
        source: stream.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.classes = source.classes
        self.templates = source.templates
        self.size = source.size

    def stream(self, **share: Any) -> Iterator[Any]:
        """The items of the source, bare of captions."""
        return (_bare(example) for example in self.source.stream(**share))


def label_captions(source: Any) -> LabelledPairs | LabelledStream:
    """A source whose captions are its labels (Goyal et al. 2023, FLYP).

    Raises:
        ClipxError: the source has no labels.
    """
    if not source.classes or len(source.classes) < 2:
        raise ClipxError(
            "this data has no labels to learn from",
            hint="class folders, or data.label_column; captions: --method infonce",
        )
    return LabelledStream(source) if is_stream(source) else LabelledPairs(source)


def _bare(example: Any) -> Any:
    return example if isinstance(example, BadSample) else {**example, "captions": []}
