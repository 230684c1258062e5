"""Which items are train, validation and test: given by the data, or by a stable hash of the item's id."""

import hashlib
from collections.abc import Callable, Iterable

from clipx.errors import ClipxError, did_you_mean

SPLITS = ("train", "validation", "test")
ALL = "all"
"""The split that holds every item, for data that is only evaluated on."""

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_alias(name: str) -> str | None:
    """The split that a folder, file or column value called ``name`` means; None where it means none."""
    return _ALIASES.get(name.lower())


def check_split(split: str) -> str:
    """Return ``split`` if it is train, validation, test or all.

    Raises:
        ClipxError: naming the valid ones.
    """
    if split not in (*SPLITS, ALL):
        raise ClipxError(f"unknown split {split!r}", hint=did_you_mean(split, (*SPLITS, ALL)))
    return split


def check_fractions(validation: float, test: float) -> None:
    """Check that both fractions lie in [0, 1].

    Raises:
        ClipxError: naming the argument and the value.
    """
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 <= value <= 1:
            raise ClipxError(f"{name} is {value}", hint="a fraction lies between 0 and 1, for example 0.1")


def unit_interval(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone: the same on every machine, in every run."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # 53 bits are what a float holds exactly; 64 would round up to 1.0 now and then.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def hash_split(item: str, *, validation: float = 0.1, test: float = 0.1) -> str:
    """The split of an item by a stable hash of its id, whatever else the data holds.

    Args:
        item: the id.
        validation: fraction of what is not test that goes to validation, in [0, 1].
        test: fraction that goes to test, in [0, 1].

    Returns:
        "train", "validation" or "test".
    """
    if unit_interval(f"test:{item}") < test:
        return "test"
    # A second, independent number: changing the test fraction never moves an item between train and
    # validation.
    return "validation" if unit_interval(f"validation:{item}") < validation else "train"


def plan(
    split: str, given: Iterable[str], *, validation: float = 0.1, test: float = 0.1, name: str = "the data"
) -> tuple[tuple[str, ...], Callable[[str], bool]]:
    """Where the items of a split come from, given the splits that the data itself has.

    A given split is used as it is. What is missing is cut from train by hash; but data with only train and
    validation (ImageNet's layout) is tested on its validation split, and its train split yields the
    validation.

    Args:
        split: "train", "validation", "test" or "all".
        given: the splits the data has; empty for data without splits.
        validation: fraction of the rest that goes to validation where it is cut by hash.
        test: fraction that goes to test where it is cut by hash.
        name: what to call the data in an error.

    Returns:
        The given splits to read (empty: read everything), and which of their ids to keep.

    Raises:
        ClipxError: where the data has splits but neither this one nor one that it could be cut from.
    """
    read, cut = _origin(split, given, validation, test, name)
    if cut is None:
        return read, lambda item: True
    return read, lambda item: hash_split(item, validation=validation, test=cut) == split


def expected_share(split: str, given: Iterable[str], *, validation: float = 0.1, test: float = 0.1) -> float:
    """The fraction of what it reads that ``plan`` keeps, in [0, 1]; by hash, it is an expectation."""
    _, cut = _origin(split, given, validation, test, "the data")
    if cut is None:
        return 1.0
    return {
        "train": (1 - cut) * (1 - validation),
        "validation": (1 - cut) * validation,
        "test": cut,
    }[split]


def _origin(
    split: str, given: Iterable[str], validation: float, test: float, name: str
) -> tuple[tuple[str, ...], float | None]:
    """The given splits to read, and the fraction of them cut for test; None where all is kept."""
    check_split(split)
    check_fractions(validation, test)
    have = set(given)
    if split == ALL:
        return tuple(part for part in SPLITS if part in have), None
    if not have:
        return (), test
    if have == {"train"}:
        return ("train",), test
    if "train" in have and len(have) == 2:
        # The one that is not train is the test, also where it is called validation; train yields the other.
        (other,) = have - {"train"}
        return ((other,), None) if split == "test" else (("train",), 0.0)
    if split in have:
        return (split,), None
    if split == "test" and have == {"validation"}:
        return ("validation",), None
    raise ClipxError(
        f"{name} has no {split} split, only {' and '.join(sorted(have))}",
        hint="add one, or use a split that is there",
    )


def empty_split(split: str, total: int, name: str) -> ClipxError:
    """The error for a split in which no item of ``total`` fell."""
    if total == 0:
        return ClipxError(f"{name} holds no usable item", hint="check the path and what was skipped")
    hint = "give more data, or a split of its own"
    if split in {"validation", "test"}:
        hint = f"give more data, a {split} split of its own, or data.{split}_fraction=0.5"
    return ClipxError(
        f"the {split} split of {name} is empty: none of its {total} items fell into it", hint=hint
    )
