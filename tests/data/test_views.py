import numpy as np
import pytest
import torch

from clipx.data.text_changes import TextChange, deleted, replaced, swapped, synonyms
from clipx.data.views import ImageView, views_of
from clipx.errors import ClipxError

VIEW = {"scale": [0.2, 1.0], "jitter": [0.4, 0.4, 0.4, 0.0]}
PICTURE = np.random.default_rng(0).integers(0, 256, (48, 40, 3)).astype(np.uint8)


def drawn(seed=0):
    return np.random.default_rng(seed)


def test_a_view_is_a_function_of_its_generator():
    view = ImageView(32, solarize=0.5)
    first, again, other = (view(PICTURE, drawn(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_view_without_changes_is_the_image():
    same = ImageView(40, (1, 1), (1, 1), 0.0, jitter_share=0, gray=0, blur=0)
    square = PICTURE[:40]
    assert torch.equal(same(square, drawn()), torch.from_numpy(square).permute(2, 0, 1))


@pytest.mark.parametrize("seed", range(3))
def test_each_change_does_what_it_says(seed):
    plain = {"scale": (1, 1), "ratio": (1, 1), "flip": 0.0, "jitter_share": 0, "gray": 0, "blur": 0}
    square = torch.from_numpy(PICTURE[:40]).permute(2, 0, 1).float()

    def changed(**values):
        return ImageView(40, **{**plain, **values})(PICTURE[:40], drawn(seed)).float()

    gray = changed(gray=1)
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[1], gray[2])
    solarized = changed(solarize=1)
    assert torch.equal(solarized, torch.where(square < 128, square, 255 - square))
    assert changed(blur=1, blur_sigma=(10.0, 10.0)).std() < 0.8 * square.std()
    assert not torch.equal(changed(jitter_share=1), square)
    assert torch.equal(changed(jitter_share=1, jitter=(0, 0, 0, 0)), square)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gray": 1.5}, "gray is 1.5"),
        ({"jitter": [0.4, 0.4, 0.4, 0.6]}, "jitter is"),
        ({"jitter": [0.4]}, "jitter is"),
        ({"blur_sigma": [0, 1]}, "blur_sigma is"),
        ({"scale": [0, 1]}, "scale is"),
    ],
)
def test_mistakes_are_named(values, said):
    with pytest.raises(ClipxError, match=said):
        ImageView(32, **values)


def test_a_caption_is_changed_in_one_way():
    words = ["a", "large", "red", "circle", "above", "the", "small", "star"]
    assert sorted(swapped(words, drawn(), 0.1)) == sorted(words)
    assert swapped(words, drawn(), 0.1) != words
    new = replaced(words, drawn(), 0.1)
    (place,) = (i for i, (before, after) in enumerate(zip(words, new, strict=True)) if before != after)
    assert new[place] in synonyms()[words[place]]
    shorter = deleted(words, drawn(), 0.5)
    assert 0 < len(shorter) < len(words)


def test_nothing_is_left_empty():
    for seed in range(20):
        generator = drawn(seed)
        assert deleted(["star"], generator, 1.0) == ["star"]
        assert swapped(["star"], generator, 1.0) == ["star"]
        assert replaced(["xyzzy"], generator, 1.0) == ["xyzzy"]
        assert TextChange(stop_words=1.0, synonyms=0, swap=0, delete=1, strength=1.0)("of the", generator)
    assert TextChange()("", drawn()) == ""


def test_stop_words_go_and_marks_stay():
    kept = TextChange(stop_words=1.0, synonyms=0, swap=0, delete=0, keep=1)
    assert kept("A photo of the dog, on a hill.", drawn()) == "photo dog, hill."
    marked = TextChange(synonyms=1, swap=0, delete=0, strength=1.0)("a dog, outside", drawn())
    assert marked == "a hound, outside"


@pytest.mark.parametrize(
    "values",
    [{"stop_words": 2}, {"strength": 0}, {"synonyms": -1}, dict.fromkeys(("synonyms", "swap", "delete"), 0)],
)
def test_weights_that_are_none(values):
    with pytest.raises(ClipxError):
        TextChange(**values)


def test_views_share_a_caption_or_draw_their_own():
    nothing = {"synonyms": 0, "swap": 0, "delete": 0, "keep": 1}
    captions = [f"caption {number}" for number in range(9)]
    fields = ("text_view_1", "text_view_2")
    shared = views_of(32, {"view": VIEW, "text_view": nothing})
    assert shared.texts("this", captions, drawn(), fields) == dict.fromkeys(fields, "this")
    fresh = views_of(32, {"view": VIEW, "text_view": {**nothing, "fresh_captions": True}})
    found = fresh.texts("this", captions, drawn(), fields)
    assert set(found.values()) <= set(captions)
    assert len({*found.values()}) == 2
