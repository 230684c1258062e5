"""A source in another look."""

import numpy as np
import pytest

from clipx.data.restyled import Restyled
from clipx.data.scenes import styles
from clipx.errors import BadSample, ClipxError


class Pictures:
    """Noise of 20 x 30 pixels; number 4 cannot be used."""

    name, classes, templates = "pictures", ["ant", "bee"], ["a {}."]

    def __len__(self):
        return 6

    def examples(self, indices):
        return [self.example(index) for index in indices]

    def example(self, index):
        if index == 4:
            return BadSample("gone")
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        return {"image": pixels, "captions": ["noise"], "label": index % 2, "id": str(index)}

    def fingerprint(self):
        return "pictures"


class Stream(Pictures):
    def stream(self, *, skip):
        return iter(())


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_every_style_changes_the_middle_square_and_nothing_else(style):
    source = Pictures()
    restyled = Restyled(source, style)
    plain, found = source.example(1), restyled[1]
    assert found["image"].shape == (20, 20, 3)
    assert found["image"].dtype == np.uint8
    assert np.abs(found["image"].astype(int) - plain["image"][:, 5:25]).mean() > 2
    assert {key: found[key] for key in ("captions", "label", "id")} == {
        key: plain[key] for key in ("captions", "label", "id")
    }
    assert (len(restyled), restyled.classes, restyled.templates) == (6, source.classes, source.templates)


def test_inverted_is_what_it_says():
    found = Restyled(Pictures(), "inverted")[0]["image"].astype(int)
    square = Pictures().example(0)["image"][:, 5:25].astype(int)
    np.testing.assert_array_equal(found.max(2), 255 - square.min(2))


def test_an_item_is_a_pure_function_of_its_place_and_the_seed():
    first, again, other = (Restyled(Pictures(), "photo-noise", seed) for seed in (0, 0, 1))
    alone, among = first.examples([3])[0]["image"], again.examples([0, 3])[1]["image"]
    np.testing.assert_array_equal(alone, among)
    assert (other[3]["image"] != alone).any()
    marks = {each.fingerprint() for each in (first, again, other, Restyled(Pictures(), "sketch"))}
    assert len(marks) == 3


def test_an_item_that_cannot_be_used_stays_one():
    restyled = Restyled(Pictures(), "blur")
    assert isinstance(restyled.examples([4])[0], BadSample)
    with pytest.raises(BadSample):
        restyled[4]


def test_what_cannot_be_restyled():
    with pytest.raises(ClipxError, match="no style 'sketc'") as caught:
        Restyled(Pictures(), "sketc")
    assert "sketch" in caught.value.hint
    with pytest.raises(ClipxError, match="stream"):
        Restyled(Stream(), "sketch")
