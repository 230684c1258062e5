"""scikit-learn's bundled handwritten digits: 1,797 real images of 8 x 8 pixels, no download."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from clipx.data import templates as prompts
from clipx.data.fields import Example
from clipx.data.sources.examples import fingerprint, one_by_one, position
from clipx.data.splits import check_split, plan
from clipx.errors import BadSample

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Digits:
    """The digits of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), test
    part.

    The split is fixed: by a stable hash of the digit's number, 10% test and 10% of the rest validation.

    Args:
        split: "train", "validation", "test" or "all".
        class_names: names of the classes, ten of them; None for zero to nine.
        templates: prompt templates, or their name; None leaves the default.
    """

    name = "digits"

    def __init__(
        self,
        split: str = "train",
        *,
        class_names: str | Sequence[str] | dict[str, str] | None = None,
        templates: str | Iterable[str] | None = "digits",
    ) -> None:
        from sklearn.datasets import load_digits

        self.split = check_split(split)
        self.classes = list(CLASSES) if class_names is None else prompts.class_names(class_names, CLASSES)
        self.templates = None if templates is None else prompts.templates(templates)
        data = load_digits()
        _, keep = plan(split, ())
        self._numbers = np.array([number for number in range(len(data.target)) if keep(f"digits/{number}")])
        self.labels = data.target[self._numbers].astype(np.int64)
        # The values are counts of 0 to 16 set pixels of a 4 x 4 cell.
        self._pixels = np.rint(data.images[self._numbers] * (255 / 16)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        index = position(index, len(self), self.name)
        return {
            "image": Image.fromarray(self._pixels[index]).convert("RGB"),
            "captions": [],
            "label": int(self.labels[index]),
            "id": f"digits/{self._numbers[index]}",
        }

    def examples(self, indices: Iterable[int]) -> list[Example | BadSample]:
        """Items by position."""
        return one_by_one(self, indices)

    def fingerprint(self) -> str:
        """A hash of the split and the class names; the pixels never change."""
        return fingerprint("digits", self.split, self.classes)
