"""Whether one method beats another, over the cells that both have; and many methods by their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipx.tasks.intervals import LEVEL, Estimate, mean_over_seeds

ALPHA = 1 - LEVEL

Test = Literal["Wilcoxon signed-rank test", "paired t-test"]


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline.

    Attributes:
        difference: mean of method - baseline over the matched cells, with Student's 95% interval.
        pairs: how many cells matched.
        p: two-sided; None where the test cannot be made (fewer than two pairs, or all differ by the same).
        adjusted: ``p`` after Holm's correction over the methods.
    """

    difference: Estimate
    pairs: int
    p: float | None
    adjusted: float | None

    @property
    def significant(self) -> bool:
        """Whether the corrected p lies below 0.05."""
        return self.adjusted is not None and self.adjusted < ALPHA


def compare_methods(differences: Mapping[str, ArrayLike]) -> tuple[Test, dict[str, Comparison]]:
    """Test every method's differences from the baseline; the same test for all, Holm-corrected over them.

    Wilcoxon's test needs no normal differences, but n pairs cannot give a p below ``2^(1-n)``: it is taken
    where every method has pairs enough to be significant after the correction, else the paired t-test.

    Args:
        differences: method - baseline in every matched cell, ``[n]``, by method; those without a pair are
            left out.

    Source: Wilcoxon 1945; Holm 1979; Demšar 2006 on the choice between the two.
    """
    rows = {name: np.asarray(values, dtype=np.float64) for name, values in differences.items()}
    rows = {name: values for name, values in rows.items() if values.size}
    fewest = min((values.size for values in rows.values()), default=0)
    enough = fewest >= 1 and 2.0 ** (1 - fewest) * len(rows) < ALPHA
    test: Test = "Wilcoxon signed-rank test" if enough else "paired t-test"
    found = {name: _p_value(values, test) for name, values in rows.items()}
    tested = {name: p for name, p in found.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return test, {
        name: Comparison(mean_over_seeds(values), values.size, found[name], adjusted.get(name))
        for name, values in rows.items()
    }


def _p_value(differences: NDArray[np.float64], test: Test) -> float | None:
    from scipy import stats

    # Metrics are ratios of counts: what differs by less than this is the same count.
    rows = np.where(np.abs(differences) < 1e-12, 0.0, differences)
    if rows.size < 2:
        return None
    if not rows.any():
        return 1.0
    if np.ptp(rows) < 1e-12:
        # Repeats of one deterministic cell say nothing about another draw.
        return None
    if test == "paired t-test":
        return float(stats.ttest_1samp(rows, 0.0).pvalue)
    return float(stats.wilcoxon(rows).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the family-wise error stays below the level.

    Args:
        p_values: of the family's tests, in [0, 1].

    Returns:
        Corrected, in the same order, in [0, 1].

    Source: Holm 1979.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Ranks:
    """Methods by their mean rank over blocks (rank 1 is the best; equal values share the mean rank).

    Attributes:
        mean: mean rank by method, best first.
        blocks: how many blocks were ranked.
        p: of Friedman's test that all rank alike, Iman and Davenport's F; None below 2 blocks or 3 methods.
        critical_difference: Nemenyi's: mean ranks nearer than this are not told apart; None like ``p``.
    """

    mean: dict[str, float]
    blocks: int
    p: float | None
    critical_difference: float | None


def rank_methods(values: ArrayLike, methods: Sequence[str], *, lower_is_better: bool = False) -> Ranks:
    """Rank the methods within every block, and ask whether the ranks differ by more than chance.

    Args:
        values: ``[N, K]``: the metric of K methods in N >= 1 blocks, all finite.
        methods: their names, ``[K]``.
        lower_is_better: of the metric.

    Source: Friedman 1937; Iman and Davenport 1980; Nemenyi 1963; Demšar 2006, "Statistical Comparisons of
    Classifiers over Multiple Data Sets", section 3.2.
    """
    from scipy import stats

    # Rounded, so that two means of the same counts in another order of summation tie.
    rows = np.round(np.asarray(values, dtype=np.float64), 10)
    blocks, count = rows.shape
    means = stats.rankdata(rows if lower_is_better else -rows, axis=1).mean(axis=0)
    order = np.argsort(means, kind="stable")
    mean = {methods[place]: float(means[place]) for place in order}
    if blocks < 2 or count < 3:
        return Ranks(mean, blocks, None, None)
    chi2 = 12 * blocks / (count * (count + 1)) * float(((means - (count + 1) / 2) ** 2).sum())
    largest = blocks * (count - 1)
    if chi2 >= largest * (1 - 1e-12):
        p = 0.0
    else:
        statistic = (blocks - 1) * chi2 / (largest - chi2)
        p = float(stats.f.sf(statistic, count - 1, (count - 1) * (blocks - 1)))
    quantile = float(stats.studentized_range.ppf(LEVEL, count, np.inf)) / 2**0.5
    return Ranks(mean, blocks, p, quantile * (count * (count + 1) / (6 * blocks)) ** 0.5)
