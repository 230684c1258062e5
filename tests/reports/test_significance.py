import numpy as np
import pytest
from scipy import stats

from clipx.reports.significance import compare_methods, holm, rank_methods


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_few_pairs_take_the_t_test_many_wilcoxon():
    rows = np.random.default_rng(0).normal(0.02, 0.01, (2, 15))
    test, found = compare_methods({"a": rows[0], "b": rows[1]})
    assert test == "Wilcoxon signed-rank test"
    assert found["a"].p == pytest.approx(stats.wilcoxon(rows[0]).pvalue)
    assert found["a"].pairs == 15
    test, found = compare_methods({"a": rows[0, :3], "b": rows[1]})
    assert test == "paired t-test"
    assert found["b"].p == pytest.approx(stats.ttest_rel(rows[1] + 0.5, np.full(15, 0.5)).pvalue)
    assert found["b"].adjusted == pytest.approx(2 * found["b"].p)
    assert found["b"].significant


def test_wilcoxon_is_taken_only_where_it_can_be_significant_for_all():
    rows = np.linspace(0.01, 0.02, 6)
    assert compare_methods({"a": rows})[0] == "Wilcoxon signed-rank test"  # 2^-5 < 0.05
    assert compare_methods(dict.fromkeys("ab", rows))[0] == "paired t-test"


@pytest.mark.parametrize(("values", "p"), [([0.1], None), ([0.1, 0.1, 0.1], None), ([0.0, 0.0], 1.0)])
def test_what_does_not_vary_is_not_tested(values, p):
    found = compare_methods({"a": values, "nothing": []})[1]
    assert found.keys() == {"a"}
    assert found["a"].p == p
    assert not found["a"].significant
    assert found["a"].difference.value == pytest.approx(np.mean(values))


def test_the_untested_do_not_count_in_the_correction():
    _, found = compare_methods({"a": [0.1, 0.1], "b": [0.1, 0.2]})
    assert found["b"].adjusted == found["b"].p


def test_no_error_where_nothing_differs():
    generator = np.random.default_rng(3)
    hits = sum(
        any(each.significant for each in compare_methods(dict(zip("abcde", rows, strict=True)))[1].values())
        for rows in generator.normal(0, 1, (200, 5, 10))
    )
    assert hits / 200 < 0.09


def test_ranks_agree_with_demsar():
    """Demšar 2006, table 6: C4.5 and three variants on 14 data sets; F = 3.69, CD = 1.25.

    The row that is printed as a tie (0.975) is ranked 2 and 3 there, so one digit is added to it.
    """
    table = [
        [0.763, 0.768, 0.771, 0.798],
        [0.599, 0.591, 0.590, 0.569],
        [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657],
        [0.882, 0.888, 0.886, 0.898],
        [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685],
        [0.583, 0.583, 0.563, 0.625],
        [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000],
        [0.940, 0.962, 0.965, 0.962],
        [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.9751, 0.975],
        [0.957, 0.978, 0.946, 0.970],
    ]
    ranks = rank_methods(table, ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"])
    assert ranks.blocks == 14
    assert ranks.mean == pytest.approx(
        {"C4.5+m+cf": 1.964, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5": 3.143}, abs=1e-3
    )
    assert list(ranks.mean) == ["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]
    assert ranks.p == pytest.approx(stats.f.sf(3.69, 3, 39), abs=2e-4)
    assert ranks.critical_difference == pytest.approx(1.25, abs=5e-3)


def test_friedman_agrees_with_scipy_where_nothing_ties():
    values = np.random.default_rng(0).random((12, 4))
    chi2 = stats.friedmanchisquare(*values.T).statistic
    statistic = 11 * chi2 / (36 - chi2)
    assert rank_methods(values, list("abcd")).p == pytest.approx(stats.f.sf(statistic, 3, 33))


def test_lower_turns_the_ranks_round_and_unanimity_is_certain():
    values = [[0.1, 0.2, 0.3]] * 4
    assert rank_methods(values, list("abc")).mean == {"c": 1, "b": 2, "a": 3}
    ranks = rank_methods(values, list("abc"), lower_is_better=True)
    assert ranks.mean == {"a": 1, "b": 2, "c": 3}
    assert ranks.p == 0
    two = rank_methods([[1, 2]], list("ab"))
    assert (two.p, two.critical_difference) == (None, None)
