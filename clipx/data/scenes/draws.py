"""Random numbers as pure functions of (seed, stream, index, position): order never matters."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
GAMMA = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 64


def stream_key(*names: object) -> int:
    """A 64-bit key from the names of a stream, e.g. ``stream_key(seed, "train", "captions")``."""
    return int.from_bytes(hashlib.blake2b(repr(names).encode(), digest_size=8).digest(), "little")


def mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64 arrays. Source: Steele, Lea, Flood, OOPSLA 2014."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniforms(key: int, indices: Sequence[int], first: int, count: int) -> np.ndarray:
    """Draws number ``first .. first + count`` of every index: float64 [len(indices), count] in [0, 1)."""
    rows = mix(np.asarray(indices, dtype=np.uint64) * GAMMA + np.uint64(key))
    columns = np.arange(first + 1, first + count + 1, dtype=np.uint64) * GAMMA
    return (mix(rows[:, None] + columns) >> np.uint64(11)) * 2.0**-53


class Draws:
    """The random numbers of one index in one stream, taken one after another and never running out."""

    __slots__ = ("index", "key", "position", "values")

    def __init__(self, key: int, index: int, values: list[float] | None = None) -> None:
        self.key = key
        self.index = index
        self.values = [] if values is None else values
        self.position = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        position = self.position
        if position >= len(self.values):
            self.values += uniforms(self.key, [self.index], len(self.values), CHUNK)[0].tolist()
        self.position = position + 1
        return low + (high - low) * self.values[position]

    def integer(self, count: int) -> int:
        """An integer in 0 .. count - 1."""
        return int(self.uniform() * count)

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each as likely."""
        return items[int(self.uniform() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a random order."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.integer(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


def many(key: int, indices: Sequence[int]) -> list[Draws]:
    """The draws of many indices of one stream, hashed at once; equal to ``Draws(key, index)`` for each."""
    values = uniforms(key, indices, 0, CHUNK).tolist()
    return [Draws(key, index, row) for index, row in zip(indices, values, strict=True)]
