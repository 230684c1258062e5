"""Splits by hash are stable, disjoint and of the asked size; given splits are honoured."""

import pytest

from clipx.data.splits import hash_split, plan, split_alias, unit_interval
from clipx.errors import ClipxError

ITEMS = [f"folder/{number}.jpg" for number in range(4000)]


def test_the_hash_never_changes():
    # Results of earlier runs depend on these numbers.
    assert unit_interval("a") == pytest.approx(0.2537936105758485)
    assert [hash_split(item) for item in ITEMS[:12]].count("train") >= 7
    assert all(0 <= unit_interval(item) < 1 for item in ITEMS)


def test_fractions_are_met():
    splits = [hash_split(item) for item in ITEMS]
    assert splits.count("test") == pytest.approx(400, abs=60)
    assert splits.count("validation") == pytest.approx(360, abs=60)
    assert {hash_split(item, test=1.0) for item in ITEMS} == {"test"}
    assert {hash_split(item, test=0.0, validation=0.0) for item in ITEMS} == {"train"}


def test_a_larger_test_fraction_only_adds_to_test():
    small = {item for item in ITEMS if hash_split(item, test=0.1) == "test"}
    large = {item for item in ITEMS if hash_split(item, test=0.2) == "test"}
    assert small < large
    validation = {item for item in ITEMS if hash_split(item, test=0.1) == "validation"}
    assert {item for item in ITEMS if hash_split(item, test=0.2) == "validation"} <= validation


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ((), {"train": (), "validation": (), "test": ()}),
        (("train",), {"train": ("train",), "validation": ("train",), "test": ("train",)}),
        (("train", "test"), {"train": ("train",), "validation": ("train",), "test": ("test",)}),
        (("train", "validation"), {"train": ("train",), "validation": ("train",), "test": ("validation",)}),
        (
            ("train", "validation", "test"),
            {"train": ("train",), "validation": ("validation",), "test": ("test",)},
        ),
        (("validation",), {"validation": ("validation",), "test": ("validation",)}),
    ],
)
def test_what_is_read_for_a_split(given, read):
    kept: dict[tuple, list[set]] = {}
    for split, parts in read.items():
        found, keep = plan(split, given)
        assert found == parts
        kept.setdefault(found, []).append({item for item in ITEMS if keep(item)})
    for part, shares in kept.items():
        # Splits cut from the same part share no item and leave none out.
        if part != ("validation",):
            assert sum(map(len, shares)) == len(ITEMS)
            assert set().union(*shares) == set(ITEMS)


def test_all_reads_everything():
    found, keep = plan("all", ("test", "train"))
    assert found == ("train", "test")
    assert all(map(keep, ITEMS))


def test_errors():
    with pytest.raises(ClipxError, match="photos has no train split, only test"):
        plan("train", ("test",), name="photos")
    with pytest.raises(ClipxError, match="unknown split 'valdation'"):
        plan("valdation", ())
    with pytest.raises(ClipxError, match="validation_fraction is -1"):
        plan("train", (), validation=-1)


def test_names_of_splits():
    assert [split_alias(name) for name in ("Train", "val", "dev", "testing", "cats")] == [
        "train",
        "validation",
        "validation",
        "test",
        None,
    ]
