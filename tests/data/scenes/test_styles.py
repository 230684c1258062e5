"""Styles and written words: other pixels, same size, same scene."""

from dataclasses import replace

import numpy as np
import pytest

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.render import paint, render
from clipx.data.scenes.styles import STYLES, apply, blurred
from clipx.data.scenes.words import GLYPHS, absent_class, lettering, write
from clipx.data.sources.scenes import Scenes


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [16, 48, 96])
def test_a_style_changes_pixels_and_keeps_size_and_facts(style: str, size: int) -> None:
    plain, styled = Scenes(image_size=size), Scenes(image_size=size, style=style)
    for index in range(4):
        before, after = plain[index], styled[index]
        assert after["image"].shape == (size, size, 3)
        assert after["image"].dtype == np.uint8
        assert np.abs(before["image"].astype(int) - after["image"]).mean() > 1.5
        assert (before["captions"], before["label"]) == (after["captions"], after["label"])
        assert plain.scene(index).things == styled.scene(index).things
        assert np.array_equal(after["image"], styled[index]["image"])


def test_several_styles_are_mixed() -> None:
    source = Scenes(style=["blur", "sketch"])
    assert {source.scene(index).style for index in range(20)} == {"blur", "sketch"}


def test_styles_do_what_they_say() -> None:
    image = paint(Scenes().scene(3), 48)
    assert apply("low-light", image, 1).mean() < 0.4 * image.mean()
    assert np.abs(np.diff(apply("blur", image, 1))).mean() < 0.7 * np.abs(np.diff(image)).mean()
    assert np.allclose(apply("inverted", apply("inverted", image, 1), 1), image, atol=0.01)
    noise = apply("photo-noise", np.full((3, 48, 48), 128, np.float32), 1)
    assert 8 < np.diff(noise).std() / np.sqrt(2) < 18
    bars = np.abs(apply("occlusion", image, 1) - image).max(axis=0) > 2
    assert 0.12 < bars.mean() < 0.45
    assert not np.array_equal(apply("photo-noise", image, 1), apply("photo-noise", image, 2))


def test_blur_keeps_the_mean_and_spreads_a_point() -> None:
    point = np.zeros((3, 21, 21), np.float32)
    point[:, 10, 10] = 1
    spread = blurred(point, 1.5)
    assert spread.sum() == pytest.approx(3, rel=1e-4)
    assert spread[0, 10, 10] == pytest.approx(1 / (2 * np.pi * 1.5**2), rel=0.05)


def test_every_letter_is_a_different_glyph() -> None:
    assert len(set(GLYPHS.values())) == 26
    assert all(len(glyph) == 15 for glyph in GLYPHS.values())
    assert lettering("red star").shape == (11, 15)
    assert not np.array_equal(lettering("red"), lettering("bed"))


def test_words_are_written_at_their_rate_and_name_what_is_not_there() -> None:
    plain, source = Scenes(), Scenes(words=0.4)
    written = 0
    for index in range(500):
        scene = source.scene(index)
        assert scene.things == plain.scene(index).things
        if scene.words is None:
            continue
        written += 1
        colour, shape = scene.words.split()
        assert all(colour != thing.colour and shape != thing.shape for thing in scene.things)
    assert abs(written / 500 - 0.4) < 0.07


def test_words_follow_the_label_and_are_seen() -> None:
    assert Scenes(words=1.0, label="shape").scene(0).words in Scenes(label="shape").classes
    for size in (16, 48, 224):
        source = Scenes(words=1.0, image_size=size)
        scene = source.scene(0)
        image, bare = render(scene, size), render(replace(scene, words=None), size)
        changed = (image != bare).any(axis=2)
        assert changed.any()
        assert changed.mean() < 0.7
        assert np.array_equal(source[0]["image"], image)


def test_words_avoid_things() -> None:
    source = Scenes(words=1.0, objects=1, sizes="small")
    hidden = []
    for index in range(60):
        scene = source.scene(index)
        image = np.zeros((3, 48, 48), np.float32)
        write(image, scene)
        thing = scene.things[0]
        hidden.append((image[0, round(thing.y * 48), round(thing.x * 48)] > 0).item())
    assert np.mean(hidden) < 0.05


def test_absent_class_is_absent_even_when_little_is() -> None:
    source = Scenes(objects=1, shapes="star", colours=["red", "blue"], words=1.0)
    scene = source.scene(0)
    assert absent_class(scene, source.world.classes, Draws(0, 0))[0] != scene.things[0].colour
