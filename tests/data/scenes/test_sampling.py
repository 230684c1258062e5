"""Scenes as they are drawn: apart, inside, told apart, of the backgrounds and classes that were set."""

from collections import Counter

import numpy as np

from clipx.data.scenes.draws import Draws, many, stream_key, uniforms
from clipx.data.scenes.profiles import ClassProfile, zipf_weights
from clipx.data.scenes.sampling import partner
from clipx.data.scenes.shapes import covered
from clipx.data.scenes.vocabulary import contrast
from clipx.data.scenes.world import overlap, relation
from clipx.data.sources.scenes import Scenes


def test_draws_do_not_depend_on_company_and_never_end() -> None:
    key = stream_key(3, "x")
    together = many(key, [5, 900, 7])
    for draws in together:
        alone = Draws(key, draws.index)
        assert [draws.uniform() for _ in range(200)] == [alone.uniform() for _ in range(200)]
    values = uniforms(key, range(200), 0, 50)
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.005
    assert len(np.unique(values)) == values.size
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.25


def test_things_stay_apart_and_inside() -> None:
    source = Scenes(objects=[1, 5])
    for index in range(300):
        things = source.scene(index).things
        for number, thing in enumerate(things):
            assert thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            assert not any(overlap(thing, other) for other in things[:number])


def test_every_pair_of_single_things_has_a_relation() -> None:
    source = Scenes(objects=[2, 5], repeats=0.0)
    for index in range(200):
        things = source.scene(index).things
        assert len({(thing.colour, thing.shape) for thing in things}) == len(things)
        assert all(relation(a, b) for a in things for b in things if a is not b)


def test_overlap_is_seen_and_leaves_the_farther_thing_recognisable() -> None:
    source = Scenes(objects=2, overlap=1.0, repeats=0.0)
    pairs = [source.scene(index).things for index in range(150)]
    together = [sorted(pair, key=lambda thing: thing.depth) for pair in pairs if overlap(*pair)]
    assert len(together) > 135
    assert all(0.08 <= covered(near, far) <= 0.4 for near, far in together)
    assert {relation(*pair) for pair in pairs if overlap(*pair)} == {"front", "behind"}


def test_repeats_give_counts() -> None:
    source = Scenes(objects=3, repeats=0.4)
    repeated = [
        len({(thing.colour, thing.shape) for thing in source.scene(index).things}) < 3 for index in range(800)
    ]
    assert abs(np.mean(repeated) - 0.4) < 0.06


def test_one_class_alone_can_fill_a_scene() -> None:
    things = Scenes(objects=4, shapes="star", colours="red").scene(0).things
    assert len(things) == 4


def test_backgrounds_contrast_with_things() -> None:
    source = Scenes(objects=[1, 2])
    clear = []
    for index in range(400):
        scene = source.scene(index)
        ground = scene.background
        clear.append(min(contrast(thing.colour, ground.tint, ground.tone) for thing in scene.things))
    assert min(clear) > 28
    assert np.mean(np.array(clear) >= 42) > 0.85


def test_spurious_strength_is_the_share_of_backgrounds_that_go_with_the_shape() -> None:
    def share(strength: float, split: str) -> float:
        source = Scenes(split, spurious=strength, objects=1)
        hits = 0
        for index in range(1000):
            scene = source.scene(index)
            found = scene.background.tint, scene.background.kind
            hits += found == partner(source.world, scene.things[0].shape)
        return hits / 1000

    chance = 1 / 28
    assert abs(share(0.0, "train") - chance) < 0.025
    assert abs(share(0.8, "train") - (0.8 + 0.2 * chance)) < 0.045
    assert abs(share(0.8, "test") - chance) < 0.025


def test_spurious_partners_differ_between_shapes() -> None:
    world = Scenes().world
    assert len({partner(world, shape) for shape in world.shapes}) == len(world.shapes)


def test_zipf_profile_has_its_exponent_in_train_and_none_in_test() -> None:
    source = Scenes(zipf=1.0, objects=1, shapes=["circle", "star"], colours=["red", "blue", "green", "pink"])
    counts = Counter(
        (thing.colour, thing.shape) for index in range(3000) for thing in source.scene(index).things
    )
    observed = np.array(sorted(counts.values(), reverse=True)) / 3000
    assert np.abs(observed - zipf_weights(8, 1.0)).max() < 0.03
    held_out = Scenes(
        "test", zipf=1.0, objects=1, test_size=800, shapes=["circle", "star"], colours=["red", "blue"]
    )
    labels = Counter(held_out._label(held_out.scene(index)) for index in range(800))
    assert set(labels.values()) == {200}


def test_zipf_order_depends_on_the_seed_and_uniform_has_none() -> None:
    first, second = ClassProfile(20, 1.0, 0), ClassProfile(20, 1.0, 1)
    assert first.order != second.order
    assert sorted(first.order) == list(range(20))
    assert [ClassProfile(4, 0.0, 0).pick(u) for u in (0.0, 0.26, 0.51, 0.9999999)] == [0, 1, 2, 3]
