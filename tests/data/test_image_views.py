import numpy as np
import pytest
import torch
from PIL import Image

from clipx.data.fields import VIEWS
from clipx.data.text_changes import TextChange, deleted, replaced, swapped, synonyms
from clipx.data.views import ImageView, covering_box, shares_of, views_of, with_hue
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


def test_a_cover_holds_the_others_and_is_drawn_between_the_smallest_and_the_whole():
    boxes = [(5, 9, 20, 30), (8, 4, 31, 22)]
    drawn_ = np.array([covering_box(boxes, 40, 48, drawn(seed)) for seed in range(300)])
    assert drawn_.min(0).tolist() == [0, 0, 31, 30]
    assert drawn_.max(0).tolist() == [5, 4, 40, 48]


def test_shares_are_of_the_sides_of_the_cover():
    (found,) = shares_of((10, 20, 30, 60), [(15, 20, 30, 40)])
    assert found.tolist() == [0.25, 0.0, 1.0, 0.5]


def test_the_views_lie_in_their_cover_where_it_is_said():
    plain = {"scale": (0.3, 0.6), "flip": 0.0, "jitter_share": 0, "gray": 0, "blur": 0}
    views = views_of(64, {"view": plain, "text_view": {}}, VIEWS)
    # Red grows to the right and green downwards: a view shows where it comes from.
    rows, columns = np.mgrid[0:200, 0:200]
    picture = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    for seed in range(5):
        found = views.images(picture, drawn(seed), VIEWS)
        red, green = found["cover_view"][:2].float()
        for name, box in zip(("image_view_1", "image_view_2"), found["view_boxes"], strict=True):
            x, y = (box[:2] + box[2:]) / 2  # the middle
            middle = found[name][:2, 31:33, 31:33].float().mean((1, 2))
            wanted = [red[0, 0].lerp(red[0, -1], x), green[0, 0].lerp(green[-1, 0], y)]
            assert torch.allclose(middle, torch.stack(wanted), atol=3.0)


def test_only_what_is_asked_for_is_given_and_a_cover_changes_no_view():
    views = views_of(32, {"view": {**VIEW, "flip": 0.0}, "text_view": {}})
    alone = views.images(PICTURE, drawn(), ["text", "image_view_1"])
    assert [*alone] == ["image_view_1"]
    covered = views.images(PICTURE, drawn(), ["image_view_1", "cover_view"])
    assert [*covered] == ["image_view_1", "cover_view"]
    assert torch.equal(alone["image_view_1"], covered["image_view_1"])


def test_a_mirrored_view_has_no_place():
    settings = {"view": VIEW, "text_view": {}}
    assert views_of(32, settings, ["image_view_1"])
    with pytest.raises(ClipxError, match=r"flip=0\.5 mirrors views"):
        views_of(32, settings, ["view_boxes"])


def test_colours_change_as_those_of_torchvision():
    from torchvision.transforms import functional

    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for shift in (-0.5, -0.1, 0.0, 0.25, 0.5):
        expected = np.asarray(functional.adjust_hue(picture, shift))
        assert np.array_equal(np.asarray(with_hue(picture, shift)), expected)

    class Halves:  # in this order, each at the middle of its upper half
        permutation = staticmethod(lambda count: [2, 0, 3, 1])
        uniform = staticmethod(lambda low, high: low + 0.75 * (high - low))

    view = ImageView(9, jitter=(0.4, 0.2, 0.6, 0.1))
    expected = functional.adjust_saturation(picture, 1.3)
    expected = functional.adjust_brightness(expected, 1.2)
    expected = functional.adjust_hue(expected, 0.05)
    expected = functional.adjust_contrast(expected, 1.1)
    assert np.array_equal(np.asarray(view._jittered(picture, Halves)), np.asarray(expected))
