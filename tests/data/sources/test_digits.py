"""The bundled digits."""

import numpy as np
import pytest

from clipx.data.sources.digits import Digits
from clipx.errors import ClipxError


def test_digits_are_rgb_images_with_labels():
    source = Digits("all")
    assert len(source) == 1797
    assert source.classes[:2] == ["zero", "one"]
    assert source.templates == ['a photo of the number: "{}".']
    example = source[0]
    assert (example["image"].mode, example["image"].size) == ("RGB", (8, 8))
    assert example["label"] == 0
    assert np.asarray(example["image"]).max() > 200
    assert source.labels.tolist()[:10] == list(range(10))


def test_splits_are_fixed_and_disjoint():
    parts = {split: Digits(split) for split in ("train", "validation", "test")}
    names = [part[index]["id"] for part in parts.values() for index in range(len(part))]
    assert len(names) == len(set(names)) == 1797
    # These numbers are the fixed split; a change would silently move results.
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 1451,
        "validation": 157,
        "test": 189,
    }
    assert len({part.fingerprint() for part in parts.values()}) == 3


def test_class_names_and_bad_arguments():
    assert Digits(class_names=list("0123456789")).classes[3] == "3"
    with pytest.raises(ClipxError, match="2 names, the data has 10"):
        Digits(class_names=["a", "b"])
    with pytest.raises(ClipxError, match="unknown split"):
        Digits("dev")
