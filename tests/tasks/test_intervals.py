import numpy as np
import pytest

from clipx.tasks.intervals import Estimate, flatten, mean, mean_of_proportions, median, proportion


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_matches_published_values(hits, total, low, high):
    estimate = proportion(hits, total)
    assert estimate.value == hits / total
    assert estimate.low == pytest.approx(low, abs=1e-4)
    assert estimate.high == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 4)])
def test_what_is_no_proportion_is_refused(hits, total):
    with pytest.raises(ValueError, match="proportion"):
        proportion(hits, total)


def test_flatten_names_half_widths():
    assert flatten({"top1": Estimate(0.5, 0.3, 0.6)}) == {"top1": 0.5, "top1_ci": pytest.approx(0.15)}


def covered(estimates, truth):
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


def test_proportion_covers_its_truth():
    hits = np.random.default_rng(0).binomial(40, 0.9, 2000)
    assert 0.93 <= covered([proportion(int(h), 40) for h in hits], 0.9) <= 0.98


@pytest.mark.parametrize("totals", [np.full(100, 2), np.full(10, 50), np.repeat([1, 40], 20)])
def test_mean_of_proportions_covers_its_truth(totals):
    generator = np.random.default_rng(1)
    shares = generator.uniform(0.6, 1.0, len(totals))
    drawn = [mean_of_proportions(generator.binomial(totals, shares), totals) for _ in range(1000)]
    assert 0.92 <= covered(drawn, shares.mean()) <= 0.995
    assert np.mean([each.value for each in drawn]) == pytest.approx(shares.mean(), abs=0.01)


def test_mean_of_proportions_is_never_certain_of_a_single_example():
    estimate = mean_of_proportions(np.ones(5, int), np.ones(5, int))
    assert estimate.value == 1
    assert estimate.low < 0.9


@pytest.mark.parametrize("size", [60, 2500])
def test_mean_covers_its_truth_and_is_seeded(size):
    generator = np.random.default_rng(2)
    drawn = [mean(generator.exponential(1.0, size), draws=400, seed=s) for s in range(200)]
    assert 0.88 <= covered(drawn, 1.0) <= 0.99
    rows = generator.random(50)
    assert mean(rows, seed=3) == mean(rows, seed=3)
    assert mean(rows, seed=3) != mean(rows, seed=4)


def test_mean_agrees_with_the_normal_interval_at_the_switch():
    rows = np.random.default_rng(0).random(2000)
    bootstrap, normal = mean(rows), mean(np.append(rows, rows.mean()))
    assert bootstrap.half_width == pytest.approx(normal.half_width, rel=0.06)


@pytest.mark.parametrize("size", [15, 200])
def test_median_covers_its_truth(size):
    generator = np.random.default_rng(3)
    drawn = [median(generator.exponential(1.0, size)) for _ in range(1000)]
    assert 0.93 <= covered(drawn, np.log(2)) <= 0.995


def test_median_of_few_values_spans_them():
    assert median([3, 1, 2]) == Estimate(2, 1, 3)
    assert median([7]) == Estimate(7, 7, 7)


@pytest.mark.parametrize("measure", [mean, median, lambda rows: mean_of_proportions(rows, rows)])
def test_nothing_has_no_estimate(measure):
    with pytest.raises(ValueError, match=r"nothing|trial"):
        measure([])
