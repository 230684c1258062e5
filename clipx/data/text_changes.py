"""Small changes of a caption that keep most of its meaning, the easy data augmentation of Wei and Zou."""

import importlib.resources
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from clipx.errors import ClipxError


class TextChange:
    """Changes a caption by removing its stop words, then by at most one operation that is drawn.

    A change that would leave nothing is not made. Draws come from the generator handed in.

    Args:
        stop_words: probability that the stop words go, in [0, 1].
        synonyms: weight of the replacement of a word by a synonym, 0 or more, like the next three.
        swap: weight of the exchange of two words.
        delete: weight of the deletion of words, each with ``strength``.
        keep: weight of no operation.
        strength: share of the words that an operation changes, at least one word, in (0, 1].

    Raises:
        ClipxError: an argument outside its range, or no positive weight.

    Source: Wei and Zou 2019, section 2; the weights are those of "Improved baselines for vision-language
        pre-training" (2023).
    """

    def __init__(
        self,
        stop_words: float = 0.0,
        synonyms: float = 1.0,
        swap: float = 1.0,
        delete: float = 1.0,
        keep: float = 0.0,
        strength: float = 0.1,
    ) -> None:
        if not 0 <= stop_words <= 1:
            raise ClipxError(f"stop_words is {stop_words}, must lie in [0, 1]")
        if not 0 < strength <= 1:
            raise ClipxError(f"strength is {strength}, must lie in (0, 1]")
        weights = np.array([synonyms, swap, delete, keep], dtype=float)
        if weights.min() < 0 or weights.sum() <= 0:
            raise ClipxError(
                f"the weights of the changes are {weights.tolist()}", hint="0 or more, one of them above 0"
            )
        self.stop_words = stop_words
        self.shares = weights / weights.sum()
        self.strength = strength

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        """The changed caption; never empty where ``text`` is not."""
        words = text.split()
        if generator.random() < self.stop_words:
            words = [word for word in words if _bare(word) not in stop_words()] or words
        change = (replaced, swapped, deleted, None)[int(generator.choice(4, p=self.shares))]
        if change is not None:
            words = change(words, generator, self.strength) or words
        return " ".join(words) or text


def replaced(words: Sequence[str], generator: np.random.Generator, strength: float) -> list[str]:
    """A share of the words, at least one, replaced by synonyms; only words that have one."""
    known = synonyms()
    found = [place for place, word in enumerate(words) if _bare(word) in known]
    changed = list(words)
    for place in generator.permutation(found)[: _count(words, strength)]:
        choices = known[_bare(words[place])]
        new = choices[int(generator.integers(len(choices)))]
        changed[place] = re.sub(r"\w+(?:[-']\w+)*", new, words[place], count=1)
    return changed


def swapped(words: Sequence[str], generator: np.random.Generator, strength: float) -> list[str]:
    """As many exchanges of two words as a share of the words says, at least one."""
    changed = list(words)
    if len(changed) > 1:
        for _ in range(_count(words, strength)):
            one, other = generator.choice(len(changed), 2, replace=False)
            changed[one], changed[other] = changed[other], changed[one]
    return changed


def deleted(words: Sequence[str], generator: np.random.Generator, strength: float) -> list[str]:
    """Every word left out with probability ``strength``; one of them stays in any case."""
    kept = [word for word in words if generator.random() >= strength]
    return kept or ([words[int(generator.integers(len(words)))]] if words else [])


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Word -> others of much the same meaning, all in lower case."""
    groups = _listed()["synonyms"]
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


@cache
def stop_words() -> frozenset[str]:
    """Words that say little about an image, in lower case."""
    return frozenset(_listed()["stop_words"])


def _listed() -> dict[str, Any]:
    return json.loads(importlib.resources.files("clipx.data").joinpath("text_words.json").read_text("utf-8"))


def _count(words: Sequence[str], strength: float) -> int:
    return max(1, round(strength * len(words)))


def _bare(word: str) -> str:
    return word.strip(".,;:!?()\"'").lower()
