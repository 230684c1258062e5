import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from clipx.errors import ClipxError
from clipx.tasks.ranking import ndcg, ranking


@pytest.mark.parametrize("k", [1, 5, 10, 100])
@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_scikit_learn(k, tied):
    generator = np.random.default_rng(0)
    scores, grades = generator.normal(size=(40, 25)), generator.integers(0, 4, (40, 25))
    if tied:
        scores = scores.round()
    found = ndcg(scores, grades, k)
    assert found.tolist() == pytest.approx(
        [ndcg_score(g[None], s[None], k=k) for g, s in zip(grades, scores, strict=True)]
    )
    exponential = ndcg(scores, grades, k, gain="exponential")
    assert exponential.mean() == pytest.approx(ndcg_score(2**grades - 1, scores, k=k))


def test_by_hand():
    """Grades 3, 2, 0, 1 in ranked order (Järvelin and Kekäläinen's discounts)."""
    found = ndcg([[4.0, 3.0, 2.0, 1.0]], [[3, 2, 0, 1]], 4)
    log3, log5 = np.log2(3), np.log2(5)
    assert found.item() == pytest.approx((3 + 2 / log3 + 1 / log5) / (3 + 2 / log3 + 1 / 2))


def test_alike_is_chance_and_nothing_relevant_is_no_query():
    found = ndcg(torch.zeros(2, 4), [[0, 0, 0, 1], [0, 0, 0, 0]], 1)
    assert found[0] == pytest.approx(0.25)
    assert found[1].isnan()
    estimates = ranking(torch.zeros(2, 4), [[0, 0, 0, 1], [0, 0, 0, 0]], at=(1, 10))
    assert estimates.keys() == {"ndcg@1", "ndcg@10"}
    assert estimates["ndcg@1"] == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    ("scores", "grades", "k", "message"),
    [
        ([[1.0]], [[1, 2]], 10, "do not match"),
        ([[1.0]], [[-1]], 10, "0 or more"),
        ([[float("nan")]], [[1]], 10, "NaN"),
        ([[1.0]], [[1]], 0, "k=0"),
    ],
)
def test_what_cannot_be_measured_is_named(scores, grades, k, message):
    with pytest.raises(ClipxError, match=message):
        ndcg(scores, grades, k)


def test_no_query_has_anything_relevant():
    with pytest.raises(ClipxError, match="nothing is relevant"):
        ranking([[1.0]], [[0]])
