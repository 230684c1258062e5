"""Hard negatives: false of the scene, true of their own image, one edit apart."""

import numpy as np
import pytest

from clipx.data.scenes.captions import plan, say
from clipx.data.scenes.draws import Draws
from clipx.data.scenes.negatives import KINDS, Negative, is_negative, negative
from clipx.data.scenes.statements import Description, Related, There, is_true
from clipx.data.sources.scenes import Scenes


@pytest.mark.parametrize("caption", ["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_negative_is_false_and_its_scene_makes_it_true(kind: str, caption: str) -> None:
    source = Scenes(objects=[1, 5], overlap=0.3)
    found = 0
    for index in range(150):
        scene = source.scene(index)
        said = plan(scene, caption, Draws(5, index))
        edit = negative(source.world, scene, said, [kind], Draws(6, index))
        assert edit is not None
        assert not is_true(edit.statements, scene)
        assert is_true(edit.statements, edit.scene)
        assert not is_true(said, edit.scene)
        assert say(edit.statements, caption, "en") != say(said, caption, "en")
        assert edit.scene.background == scene.background
        found += edit.kind == kind
        for number, thing in enumerate(edit.scene.things):
            assert 0 < thing.x < 1
            assert 0 < thing.y < 1
            assert thing.depth in range(len(edit.scene.things)), number
    assert found > (10 if kind == "swap-relation" and caption == "short" else 40)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "swap-attribute",
            {"a blue circle to the left of a red star", "a red star to the left of a blue circle"},
        ),
        ("swap-relation", {"a red circle to the right of a blue star"}),
    ],
)
def test_swaps_say_what_they_should(kind: str, expected: set[str]) -> None:
    source = Scenes(objects=2, repeats=0.0, shapes=["circle", "star"], colours=["red", "blue"])
    said = (Related(Description("red", "circle"), "left", Description("blue", "star")),)
    scenes = [source.scene(index) for index in range(200)]
    fitting = [scene for scene in scenes if is_true(said, scene)]
    assert fitting
    for scene in fitting:
        edit = negative(source.world, scene, said, [kind], Draws(1, 1))
        assert edit is not None
        assert say(edit.statements, "short", "en") in expected


def test_changes_edit_one_trait_only() -> None:
    source = Scenes(objects=1)
    for index in range(100):
        scene = source.scene(index)
        thing = scene.things[0]
        said = (There(Description(thing.colour, thing.shape)),)
        for kind in ("change-colour", "change-object", "change-count"):
            edit = negative(source.world, scene, said, [kind], Draws(2, index))
            assert edit is not None
            assert edit.kind == kind
            what, count = edit.statements[0].what, edit.statements[0].count
            assert (what.colour != thing.colour) == (kind == "change-colour")
            assert (what.shape != thing.shape) == (kind == "change-object")
            assert (count != 1) == (kind == "change-count")
            assert len(edit.scene.things) == count


def test_the_check_rejects_an_edit_that_changes_nothing() -> None:
    scene = Scenes(objects=1).scene(0)
    said = plan(scene, "short", Draws(0, 0))
    assert not is_negative(Negative("none", said, scene), scene, said)


def test_a_world_of_one_class_can_only_change_its_count() -> None:
    source = Scenes(objects=1, shapes="star", colours="red", negatives=["change-colour"])
    edit = source.negative(0)
    assert edit is not None
    assert edit.kind == "change-count"


def test_the_source_gives_captions_and_image() -> None:
    source = Scenes(
        negatives=True,
        negative_images=True,
        captions=["short", "long"],
        language=["en", "de"],
        objects=[1, 4],
    )
    for index, example in enumerate(source.examples(range(30))):
        assert len(example["negative_captions"]) == len(example["captions"]) == 4
        assert all(a != b for a, b in zip(example["captions"], example["negative_captions"], strict=True))
        assert example["negative_image"].shape == example["image"].shape
        assert not np.array_equal(example["negative_image"], example["image"])
        assert set(example["negative_kinds"]) <= set(KINDS)
        assert source[index]["negative_captions"] == example["negative_captions"]


def test_a_negative_of_one_example_is_the_one_the_source_writes() -> None:
    source = Scenes(negatives=["change-colour"], negative_images=True)
    for index in range(10):
        edit = source.negative(index)
        assert edit is not None
        assert [say(edit.statements, "short", "en")] == source[index]["negative_captions"]
