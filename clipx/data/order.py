"""The order in which samples are seen: a pure function of (seed, epoch, position), no index in memory."""

import hashlib
from collections.abc import Iterator

import numpy as np

_ROUNDS = 8
"""With four, the order of a few dozen items is measurably not uniform."""


class Permutation:
    """A pseudo-random permutation of ``range(size)`` that takes constant memory, however large the data.

    An eight-round Feistel network over the next power of four, cycle-walking back into range (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        size: number of items, at least 1.
        seed: of the run.
        epoch: each epoch has a permutation of its own.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self.half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(f"{seed}/{epoch}/{size}".encode(), digest_size=8 * _ROUNDS).digest()
        self.keys = np.frombuffer(digest, dtype=np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where positions int64 ``[B]`` in [0, size) go: int64 ``[B]``, a bijection of the range."""
        values = self._encrypt(positions.astype(np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._encrypt(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        bits, mask = np.uint64(self.half_bits), np.uint64((1 << self.half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in self.keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainingOrder:
    """Batches of ``(epoch, index)`` keys for one process; a step's batch depends on nothing that came before
    it.

    The samples of a run are one endless stream, epoch after epoch, cut into global batches; process ``rank``
    takes its slice of each. So a run that resumes at step k sees what the uninterrupted one sees, with any
    number of workers.

    Args:
        size: samples in the data.
        batch_size: of one process.
        seed: of the run.
        steps: (first, end) steps to yield.
        rank: of this process in ``world``.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, steps: tuple[int, int], rank: int = 0, world: int = 1
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return max(0, self.steps[1] - self.steps[0])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        permutation = Permutation(self.size, self.seed, 0)
        current = 0
        for step in range(*self.steps):
            first = (step * self.world + self.rank) * self.batch_size
            numbers = np.arange(first, first + self.batch_size)
            keys: list[tuple[int, int]] = []
            for epoch in np.unique(numbers // self.size).tolist():
                if epoch != current:
                    permutation, current = Permutation(self.size, self.seed, epoch), epoch
                positions = numbers[numbers // self.size == epoch] % self.size
                keys += [(epoch, index) for index in permutation(positions).tolist()]
            yield keys


def sample_generator(seed: int, epoch: int, index: int, share: int = 0) -> np.random.Generator:
    """The generator of every random draw about one sample (crop, caption choice) in one epoch.

    Args:
        seed: of the run.
        epoch: 0 or more.
        index: of the sample in the data, or in its share of a stream.
        share: which share of a stream, 0 or more; 0 for data with an index.
    """
    # Philox counts up in the lowest of four words: the sample stands in another one, so that no two samples
    # share draws.
    counter = np.array([0, index, share, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=(seed << 64) | (epoch & (2**64 - 1)), counter=counter))


def turn(count: int, seed: int, epoch: int, index: int) -> int:
    """Which of several captions of a sample an epoch takes: each once in ``count`` epochs, in a drawn order.

    Args:
        count: of them, 1 or more.
        seed, epoch, index: as ``sample_generator`` takes them, of data with an index.
    """
    round_, place = divmod(epoch, count)
    return int(sample_generator(seed, round_, index, share=1).permutation(count)[place])
