"""A figure and how far it can be trusted: 95% intervals of proportions, means and medians.

Every interval treats the rows it is given as independent draws. Captions of one image are not quite, so a
text-to-image interval over several captions an image is somewhat narrow.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Z = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution: 95% of it lies within +-Z."""

_DRAWS_AT_ONCE = 2**22
_ENOUGH_FOR_NORMAL = 2000


class Estimate(NamedTuple):
    """A measured value and the ends of its 95% interval, in its units; ``low <= value <= high``."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the width of the interval."""
        return (self.high - self.low) / 2


def flatten(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Name every value and its half width: ``{"top1": 0.9, "top1_ci": 0.02, ...}``."""
    flat: dict[str, float] = {}
    for name, estimate in estimates.items():
        flat[name] = estimate.value
        flat[f"{name}_ci"] = estimate.half_width
    return flat


def proportion(hits: int, total: int) -> Estimate:
    """Wilson's score interval of a proportion, good down to a handful of rows and at 0 and 1.

    Args:
        hits: successes, in [0, total].
        total: trials, >= 1.

    Raises:
        ValueError: if there are no trials, or hits outside [0, total].

    Source: Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for every size.
    """
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"{hits} of {total} is not a proportion")
    share, spread = hits / total, Z**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == total else min(1.0, centre + half)
    return Estimate(share, low, high)


def mean_of_proportions(hits: ArrayLike, totals: ArrayLike) -> Estimate:
    """The plain mean of several groups' proportions (accuracy over classes), with its stratified interval.

    The variance of each group is taken at its proportion drawn towards the pooled one by two pseudo-trials:
    a class of one example that happens to be right would otherwise look perfectly certain.

    Args:
        hits: successes of each group, ``[G]``.
        totals: trials of each group, ``[G]``, all >= 1.

    Raises:
        ValueError: if there are no groups or a group has no trials.
    """
    right, total = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    if total.size == 0 or total.min() < 1:
        raise ValueError("every group needs at least one trial")
    value = float((right / total).mean())
    pooled = (right.sum() + 2) / (total.sum() + 4)
    drawn = (right + 2 * pooled) / (total + 2)
    half = Z * float((drawn * (1 - drawn) / total).sum()) ** 0.5 / total.size
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def mean(values: ArrayLike, *, seed: int = 0, draws: int = 1000) -> Estimate:
    """The mean and its interval: bootstrap percentiles; the normal one above 2,000 rows, where the two agree.

    Args:
        values: ``[N]``, N >= 1.
        seed: of the bootstrap's draws.
        draws: bootstrap resamples.

    Raises:
        ValueError: if there are no values.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.size == 0:
        raise ValueError("there is nothing to average")
    value = float(rows.mean())
    if rows.size > _ENOUGH_FOR_NORMAL:
        half = Z * float(rows.std(ddof=1)) / rows.size**0.5
        return Estimate(value, value - half, value + half)
    low, high = np.quantile(_resampled_means(rows, seed, draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def _resampled_means(rows: NDArray[np.float64], seed: int, draws: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // rows.size)
    means = [
        rows[generator.integers(0, rows.size, (min(at_once, draws - start), rows.size))].mean(axis=1)
        for start in range(0, draws, at_once)
    ]
    return np.concatenate(means)


def resampled(
    statistic: Callable[[NDArray[np.float64]], ArrayLike], size: int, *, seed: int = 0, draws: int = 200
) -> NDArray[np.float64]:
    """A statistic of rows drawn again with replacement: its bootstrap draws ``[draws, ...]``.

    Args:
        statistic: one or several numbers from how often each row was drawn, ``[size]``, summing to ``size``.
        size: number of rows, >= 1.
        seed: of the draws.
        draws: how many.
    """
    generator = np.random.default_rng(seed)
    rows = (generator.integers(0, size, size) for _ in range(draws))
    return np.array([statistic(np.bincount(each, minlength=size).astype(np.float64)) for each in rows])


def percentile_interval(value: float, draws: ArrayLike) -> Estimate:
    """A value with the percentile interval of its bootstrap draws, widened to hold it; NaN does not count."""
    low, high = np.nanquantile(np.asarray(draws, np.float64), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def mean_over_seeds(values: ArrayLike) -> Estimate:
    """The mean of a figure over a few seeds, with Student's interval for where another seed would put it.

    Args:
        values: one a seed, ``[S]``; of a single one the interval is unknown and empty.

    Raises:
        ValueError: if there are no values.
    """
    from scipy.stats import t

    rows = np.asarray(values, dtype=np.float64)
    if rows.size == 0:
        raise ValueError("there is nothing to average")
    value = float(rows.mean())
    if rows.size == 1:
        return Estimate(value, value, value)
    half = float(t.ppf((1 + LEVEL) / 2, rows.size - 1)) * float(rows.std(ddof=1)) / rows.size**0.5
    return Estimate(value, value - half, value + half)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """How much more often the first of two classifiers is right on the same rows, with its normal interval.

    Args:
        first, second: whether each row is right, bool ``[N]``, N >= 1.

    Raises:
        ValueError: if there are no rows.
    """
    gains = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if gains.size == 0:
        raise ValueError("there is nothing to compare")
    value = float(gains.mean())
    half = Z * float(gains.std(ddof=1 if gains.size > 1 else 0)) / gains.size**0.5
    return Estimate(value, value - half, value + half)


def median(values: ArrayLike) -> Estimate:
    """The median and its distribution-free interval between two order statistics.

    The number of values below the true median is binomial (N, 1/2), whatever the values' distribution, so the
    interval needs no resampling.

    Args:
        values: ``[N]``, N >= 1; below six values the interval is the whole range.

    Raises:
        ValueError: if there are no values.

    Source: Thompson 1936; normal approximation of the binomial with continuity correction.
    """
    rows = np.sort(np.asarray(values, dtype=np.float64))
    if rows.size == 0:
        raise ValueError("there is nothing to take the median of")
    below = int(np.floor((rows.size - 1 - Z * rows.size**0.5) / 2))
    below = max(0, below)
    return Estimate(float(np.median(rows)), float(rows[below]), float(rows[rows.size - 1 - below]))
