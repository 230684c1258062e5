"""The few labelled images themselves, for methods that train the towers, in batches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.data.order import Permutation, sample_generator
from clipx.data.transforms import TrainTransform
from clipx.errors import BadSample

_KEPT = 4096
"""Images that are kept in memory once opened; more are opened again every epoch."""


class ShotImages:
    """Chosen images of a source with their labels.

    Args:
        source: map-style.
        indices: places in it, of images that can be opened.
        labels: int64 ``[N]``, of the images.
        transform: augmentation of training batches.
        preprocess: ``image -> uint8 [3, H, W]`` of evaluation batches, as ``CLIP.preprocess``.
        seed: of the order and the augmentation.
    """

    def __init__(
        self,
        source: Any,
        indices: Sequence[int],
        labels: Sequence[int],
        *,
        transform: TrainTransform,
        preprocess: Callable[[Any], Tensor],
        seed: int = 0,
    ) -> None:
        self.source = source
        self.indices = [int(index) for index in indices]
        self.labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
        self.transform = transform
        self.preprocess = preprocess
        self.seed = seed
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def batches(
        self, batch_size: int, *, epoch: int = 0, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: uint8 images ``[B, 3, H, W]``, augmented, and labels int64 ``[B]``, shuffled.

        A last batch that is not full is left out only where there is a full one.
        """
        order = Permutation(len(self), self.seed, epoch)(np.arange(len(self))).tolist()
        last = len(order) // batch_size * batch_size if drop_last and len(order) >= batch_size else len(order)
        for first in range(0, last, batch_size):
            places = order[first : min(first + batch_size, last)]
            images = [
                self.transform(image, sample_generator(self.seed, epoch, place))
                for place, image in zip(places, self._images(places), strict=True)
            ]
            yield torch.stack(images), self.labels[places]

    def plain(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, not augmented: uint8 ``[B, 3, H, W]`` and labels int64 ``[B]``."""
        for first in range(0, len(self), batch_size):
            places = list(range(first, min(first + batch_size, len(self))))
            images = [self.preprocess(image) for image in self._images(places)]
            yield torch.stack(images), self.labels[places]

    def _images(self, places: Sequence[int]) -> list[Any]:
        missing = [place for place in places if place not in self._opened]
        fresh = {}
        if missing:
            examples = self.source.examples([self.indices[place] for place in missing])
            for place, example in zip(missing, examples, strict=True):
                if isinstance(example, BadSample):
                    raise example
                fresh[place] = example["image"]
        images = [self._opened[place] if place in self._opened else fresh[place] for place in places]
        if len(self) <= _KEPT:
            self._opened.update(fresh)
        return images
