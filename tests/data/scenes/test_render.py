"""Pixels: every word looks different, edges are smooth, ground truth agrees with what is seen."""

from dataclasses import replace

import numpy as np
import pytest

from clipx.data.scenes.render import boxes, depths, masks, paint, render, render_batch
from clipx.data.scenes.shapes import DISTANCES, covered
from clipx.data.scenes.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, TINTS, TONES, lab
from clipx.data.scenes.world import Background, Scene, Thing
from clipx.data.sources.scenes import Scenes

GROUND = Background("plain", "gray", 0, 0.3, 0.2, 0.7)
THING = Thing("circle", "red", "large", "solid", 0.5, 0.5, 0.3, 0.0, 0)


def shown(size: int = 48, ground: Background = GROUND, **changes: object) -> np.ndarray:
    return render(Scene((replace(THING, **changes),), ground), size)


@pytest.mark.parametrize(
    ("attribute", "words"), [("shape", SHAPES), ("colour", tuple(COLOURS)), ("texture", TEXTURES)]
)
def test_every_word_renders_its_own_image(attribute: str, words: tuple[str, ...]) -> None:
    images = [shown(**{attribute: word}).astype(float) for word in words]
    for number, image in enumerate(images):
        for other in images[:number]:
            assert np.abs(image - other).mean() > 1.0


def test_every_background_renders_its_own_image() -> None:
    images = {
        shown(ground=Background(kind, tint, tone, 0.3, 0.2, 0.7)).tobytes()
        for kind in BACKGROUNDS
        for tint in TINTS
        for tone in range(len(TONES))
    }
    assert len(images) == len(BACKGROUNDS) * len(TINTS) * len(TONES)


def test_there_are_as_many_words_as_promised() -> None:
    assert len(SHAPES) >= 10
    assert len(COLOURS) >= 10
    assert len(SIZES) == 3
    assert len(TEXTURES) == 4
    assert set(DISTANCES) == set(SHAPES)


@pytest.mark.parametrize("texture", TEXTURES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_keeps_its_colour_under_light_and_texture(colour: str, texture: str) -> None:
    image = shown(shape="square", colour=colour, texture=texture)
    mean = image[18:30, 18:30].reshape(-1, 3).mean(axis=0)
    distance = {name: np.linalg.norm(lab(tuple(mean)) - lab(rgb)) for name, rgb in COLOURS.items()}
    assert min(distance, key=distance.__getitem__) == colour


def test_edges_are_smooth_and_keep_their_area_at_any_size() -> None:
    for size in (24, 48, 160):
        image = paint(Scene((replace(THING, colour="black", x=0.503, y=0.497),), GROUND), size)
        inside = masks(Scene((replace(THING, x=0.503, y=0.497),), GROUND), size)[0]
        area = inside.mean()
        assert area == pytest.approx(np.pi * (0.9 * 0.3) ** 2, rel=0.06)
        middle = image[0, size // 2]
        between = (middle > 60) & (middle < 190)
        assert 1 <= between.sum() <= 8


def test_moving_by_a_fraction_of_a_pixel_changes_pixels_a_little() -> None:
    first, second = shown(x=0.5).astype(int), shown(x=0.5 + 0.25 / 48).astype(int)
    assert 0 < np.abs(first - second).mean() < 3


def test_masks_are_disjoint_and_nearer_things_hide_farther_ones() -> None:
    near, far = (
        replace(THING, x=0.42, depth=0),
        replace(THING, shape="square", colour="blue", x=0.62, depth=1),
    )
    scene = Scene((near, far), GROUND)
    visible = masks(scene, 64)
    assert not (visible[0] & visible[1]).any()
    alone = masks(Scene((far,), GROUND), 64)[0]
    assert visible[1].sum() < alone.sum()
    assert np.array_equal(visible[0], masks(Scene((near,), GROUND), 64)[0])
    image = render(scene, 64)
    assert (image[visible[0]][:, 0] > image[visible[0]][:, 2]).mean() > 0.98
    hidden = 1 - visible[1].sum() / alone.sum()
    assert covered(near, far) == pytest.approx(hidden, abs=0.05)
    assert depths(scene).tolist() == [0, 1]


def test_boxes_are_the_extents_of_masks() -> None:
    source = Scenes(objects=[1, 5], overlap=0.5, extras=["boxes", "masks", "depth"], image_size=64)
    for example in source.examples(range(40)):
        for box, mask in zip(example["boxes"], example["masks"], strict=True):
            x0, y0, x1, y1 = box.astype(int)
            assert mask.any()
            outside = mask.copy()
            outside[y0:y1, x0:x1] = False
            assert not outside.any()
            inner = mask[y0:y1, x0:x1]
            assert inner[0].any()
            assert inner[-1].any()
            assert inner[:, 0].any()
            assert inner[:, -1].any()
        assert sorted(example["depth"].tolist()) == list(range(len(example["masks"])))
        assert example["masks"].sum(axis=0).max() <= 1


def test_box_of_a_hidden_thing_is_minus_one() -> None:
    assert boxes(np.zeros((1, 4, 4), dtype=bool)).tolist() == [[-1, -1, -1, -1]]


def test_a_batch_has_the_pixels_of_its_scenes() -> None:
    source = Scenes(objects=[1, 4])
    scenes = [source.scene(index) for index in range(8)]
    batch = render_batch(scenes, 40)
    assert batch.shape == (8, 40, 40, 3)
    assert batch.dtype == np.uint8
    for scene, image in zip(scenes, batch, strict=True):
        assert np.array_equal(image, render(scene, 40))
    assert render_batch([], 40).shape == (0, 40, 40, 3)
