"""The few-shot protocol: which images a class is learnt from and tuned on, and base classes against new ones.

Zhou et al. 2022 (CoOp): K in {1, 2, 4, 8, 16} images a class from the training split, several seeds, the
whole test split. Released code bases draw from generators of their own, so equal seeds do not mean equal
images across papers; here a draw depends on (data set, seed, shots) and on nothing else.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipx.data.fields import UNLABELLED
from clipx.errors import BadSample, ClipxError, did_you_mean

SHOTS = (1, 2, 4, 8, 16)
"""The shots a class that papers report."""

VALIDATION = {
    "coop": "min(shots, 4) images a class from the validation split",
    "full": "the whole validation split, however few the shots",
    "same": "as many validation images a class as shots",
    "none": "no validation: the method's fixed values",
    "imagenet": "no validation: the values that another run found (hyperparameters=RUN)",
}
"""Every regime of validation, by name. None of them sees a test image."""

COOP_VALIDATION = 4
_AT_ONCE = 256


@dataclass(frozen=True)
class Draw:
    """The images drawn, class by class.

    ``indices`` int64 ``[N]`` are places in the source, ``labels`` int64 ``[N]`` their classes; ``short``
    tells for every class that has fewer images than were asked for how many it has (0: none at all).
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    short: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


def draw(
    labels: ArrayLike,
    shots: int | None,
    *,
    classes: int | Sequence[int],
    dataset: str,
    seed: int,
    nested: bool = False,
    part: str = "train",
    unusable: Collection[int] = (),
) -> Draw:
    """Draw the same number of images of every class, without replacement.

    A class with fewer images than shots gives all it has; nothing is repeated. Each class has a generator of
    its own, so that the images of one do not depend on which others there are.

    Args:
        labels: class of every item of the source, int64 ``[M]``; -1 for none.
        shots: images a class, >= 1; None for all.
        classes: their number, or the classes to draw from.
        dataset: name of the data, part of the generator's key.
        seed: part of the key.
        nested: leave the shots out of the key, so that the 2K-shot set contains the K-shot set.
        part: ``train`` or ``validation``, part of the key.
        unusable: places that are not to be drawn (images that cannot be opened).

    Raises:
        ClipxError: shots below 1, or a label outside the classes.
    """
    if shots is not None and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
        raise ClipxError(f"shots={shots} draws nothing", hint=f"a whole number: {', '.join(map(str, SHOTS))}")
    truth = np.asarray(labels, dtype=np.int64)
    wanted = list(range(classes)) if isinstance(classes, int) else [int(label) for label in classes]
    if isinstance(classes, int) and len(truth) and truth.max() >= classes:
        raise ClipxError(
            f"the data has label {int(truth.max())}, but names for {classes} classes only",
            hint="one name a class: labels=[...], or data.class_names",
        )
    order = np.argsort(truth, kind="stable")
    sorted_labels = truth[order]
    lost = np.array(sorted(unusable), dtype=np.int64)
    chosen, of_class, short = [np.empty(0, np.int64)], [np.empty(0, np.int64)], {}
    for label in wanted:
        first, last = np.searchsorted(sorted_labels, [label, label + 1])
        places = order[first:last]
        key = (part, dataset, seed, None if nested else shots, label)
        shuffled = places if shots is None else places[_generator(key).permutation(len(places))]
        # What cannot be used gives way to the next, and the others stay.
        taken = shuffled[~np.isin(shuffled, lost)][:shots]
        chosen.append(taken)
        of_class.append(np.full(len(taken), label))
        if len(taken) < (shots or 1):
            short[label] = len(taken)
    return Draw(np.concatenate(chosen), np.concatenate(of_class), short)


def _generator(key: tuple[Any, ...]) -> np.random.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def validation_shots(regime: str, shots: int | None) -> int | None:
    """Validation images a class in a regime: 0 for none, None for all there are.

    Raises:
        ClipxError: no such regime.
    """
    if regime not in VALIDATION:
        raise ClipxError(f"val={regime} is no validation regime", hint=did_you_mean(regime, VALIDATION))
    if regime in ("none", "imagenet"):
        return 0
    if regime == "full" or shots is None:
        return None
    return shots if regime == "same" else min(shots, COOP_VALIDATION)


def labels_of(source: Any) -> NDArray[np.int64]:
    """The label of every item of a source, int64 ``[N]``; -1 where it has none or cannot be used.

    Sources that know their labels are asked; of others every example is opened.

    Raises:
        ClipxError: the source is a stream, or has no labels.
    """
    if hasattr(source, "stream"):
        raise ClipxError(
            "few-shot images cannot be drawn from a stream",
            hint="data.streaming=false, or data=folder, table, huggingface",
        )
    found = getattr(source, "labels", None)
    if found is None:
        found = []
        for first in range(0, len(source), _AT_ONCE):
            for example in source.examples(range(first, min(first + _AT_ONCE, len(source)))):
                bad = isinstance(example, BadSample)
                found.append(UNLABELLED if bad else example.get("label", UNLABELLED))
    labels = np.asarray(found, dtype=np.int64)
    if not (labels != UNLABELLED).any():
        raise ClipxError("this data has no labels to learn from", hint="class folders, or data.label_column")
    return labels


def base_and_new(classes: int) -> tuple[list[int], list[int]]:
    """The first half of the classes, rounded up, and the rest (Zhou et al. 2022, CoCoOp).

    Raises:
        ClipxError: fewer than four classes: a half would be no choice.
    """
    if classes < 4:
        raise ClipxError(f"task=base-to-new halves the classes; {classes} are too few", hint="four or more")
    half = -(-classes // 2)
    return list(range(half)), list(range(half, classes))


def harmonic_mean(base: float, new: float) -> float:
    """``2 b n / (b + n)``, 0 where both are 0; over seeds or data sets it is taken of the means."""
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def relabelled(labels: ArrayLike, classes: Sequence[int]) -> NDArray[np.int64]:
    """Labels as positions in ``classes``, -1 for those outside of it: int64 ``[N]``."""
    truth = np.asarray(labels, dtype=np.int64)
    table = np.full(max([*classes, int(truth.max(initial=0)), 0]) + 2, UNLABELLED, dtype=np.int64)
    table[list(classes)] = np.arange(len(classes))
    return table[truth]  # -1 reads the last cell, which no class has
