"""Which class a scene shows: balanced, Zipf long-tailed; and which background goes with a shape."""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import numpy as np

from clipx.data.scenes.draws import stream_key, uniforms


def zipf_weights(count: int, exponent: float) -> np.ndarray:
    """Probabilities proportional to ``1 / rank ** exponent``: float64 [count]; exponent 0 is uniform."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


class ClassProfile:
    """A distribution over classes, long-tailed in an order of classes that depends on ``seed`` alone.

    Args:
        count: number of classes.
        exponent: Zipf exponent, 0 for uniform.
        seed: decides which classes are frequent.
    """

    def __init__(self, count: int, exponent: float, seed: int) -> None:
        order = np.argsort(uniforms(stream_key(seed, "ranks"), [0], 0, count)[0], kind="stable")
        self.order = order.tolist() if exponent else list(range(count))
        self.cumulative = list(accumulate(zipf_weights(count, exponent).tolist()))

    def pick(self, uniform: float) -> int:
        """The class index that a uniform draw in [0, 1) selects."""
        return int(self.order[min(bisect_right(self.cumulative, uniform), len(self.order) - 1)])


@lru_cache(maxsize=1024)
def _shuffled_block(key: int, block: int, count: int) -> tuple[int, ...]:
    return tuple(np.argsort(uniforms(key, [block], 0, count)[0], kind="stable").tolist())


def balanced(key: int, index: int, classes: int, counts: int) -> tuple[int, int]:
    """Class and object count of one example of a split in which every class meets every count equally often.

    Every block of ``classes`` examples holds each class once, shuffled; over ``counts`` blocks each class
    takes each count once.

    Returns:
        (class index, count index), both pure functions of the arguments.
    """
    block, place = divmod(index, classes)
    chosen = _shuffled_block(key, block, classes)[place]
    return chosen, (chosen + block) % counts
