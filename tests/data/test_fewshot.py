from types import SimpleNamespace

import numpy as np
import pytest

from clipx.data.fewshot import (
    SHOTS,
    base_and_new,
    draw,
    harmonic_mean,
    labels_of,
    relabelled,
    validation_shots,
)
from clipx.errors import BadSample, ClipxError

LABELS = np.array([0, 1, 2] * 30 + [3] * 3 + [-1] * 5)


def drawn(shots, seed=1, labels=LABELS, classes=4, dataset="pets", **options):
    return draw(labels, shots, classes=classes, dataset=dataset, seed=seed, **options)


@pytest.mark.parametrize("shots", SHOTS)
def test_every_class_gets_as_many(shots):
    found = drawn(shots)
    assert np.bincount(found.labels).tolist() == [shots, shots, shots, min(shots, 3)]
    assert (LABELS[found.indices] == found.labels).all()
    assert len(set(found.indices.tolist())) == len(found)
    assert found.short == ({3: 3} if shots > 3 else {})


def test_a_draw_is_a_function_of_its_key():
    first = drawn(4).indices.tolist()
    assert first == drawn(4).indices.tolist()
    others = [
        drawn(4, seed=2),
        drawn(4, dataset="cars"),
        drawn(4, part="validation"),
        drawn(8),
        drawn(4, nested=True),
    ]
    for other in others:
        assert other.indices[:4].tolist() != first[:4]


def test_a_class_does_not_depend_on_the_others():
    alone = drawn(4, classes=[2])
    assert alone.indices.tolist() == drawn(4).indices[8:12].tolist()
    assert alone.labels.tolist() == [2] * 4


def test_nested_draws_contain_one_another():
    before = set()
    for shots in SHOTS:
        now = set(drawn(shots, nested=True).indices.tolist())
        assert before < now
        before = now


def test_seeds_do_not_favour_an_image():
    counts = np.zeros(30)
    for seed in range(300):
        counts[drawn(10, seed=seed, classes=[0]).indices // 3] += 1
    assert abs(counts - 100).max() < 5 * (300 * 1 / 3 * 2 / 3) ** 0.5


def test_all_there_are():
    found = drawn(None)
    assert found.indices.tolist() == [*range(0, 90, 3), *range(1, 90, 3), *range(2, 90, 3), 90, 91, 92]
    assert found.short == {}


def test_a_class_without_images_is_told():
    found = drawn(2, classes=5)
    assert found.short == {4: 0}
    assert drawn(None, classes=5).short == {4: 0}


def test_what_cannot_be_used_gives_way_to_the_next():
    first = drawn(4)
    lost = int(first.indices[1])
    second = drawn(4, unusable={lost})
    assert lost not in second.indices
    assert second.indices[0] == first.indices[0]
    assert second.indices[1:3].tolist() == first.indices[2:4].tolist()
    assert second.indices[4:].tolist() == first.indices[4:].tolist()
    assert drawn(4, unusable={90, 91}).short == {3: 1}


@pytest.mark.parametrize("shots", [0, -1, True, 2.0])
def test_shots_that_are_none(shots):
    with pytest.raises(ClipxError, match=f"shots={shots}"):
        drawn(shots)


def test_more_classes_than_names():
    with pytest.raises(ClipxError, match="label 3, but names for 3 classes"):
        drawn(1, classes=3)


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("coop", [1, 2, 4, 4, 4, None]),
        ("same", [1, 2, 4, 8, 16, None]),
        ("full", [None] * 6),
        ("none", [0] * 6),
        ("imagenet", [0] * 6),
    ],
)
def test_regimes_of_validation(regime, expected):
    assert [validation_shots(regime, shots) for shots in (*SHOTS, None)] == expected


def test_an_unknown_regime():
    with pytest.raises(ClipxError, match="val=coopp"):
        validation_shots("coopp", 1)


def test_base_and_new():
    assert base_and_new(5) == ([0, 1, 2], [3, 4])
    with pytest.raises(ClipxError, match="3 are too few"):
        base_and_new(3)
    assert relabelled([4, 0, 3, -1], [3, 4]).tolist() == [1, -1, 0, -1]
    assert relabelled([9], [0, 1]).tolist() == [-1]


def test_harmonic_mean():
    # CoOp, mean of 11 sets: 82.69 and 63.22 give 71.66.
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=0.005)
    assert harmonic_mean(0.0, 0.0) == 0


def test_labels_are_asked_for_or_looked_up():
    class Plain:
        examples_ = [{"label": 1}, BadSample("truncated"), {}, {"label": 0}]

        def __len__(self):
            return 4

        def examples(self, places):
            return [self.examples_[place] for place in places]

    assert labels_of(Plain()).tolist() == [1, -1, -1, 0]
    assert labels_of(SimpleNamespace(labels=[0, 1])).tolist() == [0, 1]
    with pytest.raises(ClipxError, match="no labels"):
        labels_of(SimpleNamespace(labels=[-1, -1]))
    with pytest.raises(ClipxError, match="stream"):
        labels_of(SimpleNamespace(stream=None))


def test_scenes_know_their_labels():
    from clipx.data.sources.scenes import Scenes

    source = Scenes("train", size=40, objects=[1, 2])
    before = source.fingerprint()
    assert source.labels.tolist() == [example["label"] for example in source.examples(range(40))]
    assert source.fingerprint() == before
    assert set(Scenes("test", test_size=5, objects=2).labels) == {-1}


def test_scenes_may_have_other_words():
    from clipx.data.sources.scenes import Scenes

    options = {"shapes": ["ring", "star"], "colours": ["red"]}
    assert Scenes("test", names={"ring": "hoop"}, **options).classes == ["red hoop", "red star"]
    for names, message in (({"rng": "hoop"}, "rng"), ({"ring": "star"}, "the same name")):
        with pytest.raises(ClipxError, match=message):
            Scenes("test", names=names, **options)
