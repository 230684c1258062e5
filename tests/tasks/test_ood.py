import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from clipx.errors import ClipxError
from clipx.tasks.ood import detection


def values(*args, **kwargs):
    return {name: each.value for name, each in detection(*args, draws=2, **kwargs).items()}


@pytest.mark.parametrize("rounded", [False, True])
def test_agrees_with_scikit_learn(rounded):
    generator = np.random.default_rng(0)
    inside, outside = generator.normal(1, 1, 500), generator.normal(0, 1.2, 300)
    if rounded:  # many ties
        inside, outside = inside.round(), outside.round()
    truth, scores = np.repeat([1, 0], [500, 300]), np.concatenate([inside, outside])
    found = values(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(1 - truth, -scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_by_hand():
    found = values([3.0, 2.0, 1.0], [2.5, 0.0])
    assert found == pytest.approx(
        {"auroc": 4 / 6, "aupr_in": (1 + 2 / 3 + 3 / 4) / 3, "aupr_out": 0.75, "fpr95": 0.5}
    )


def test_the_ends():
    assert values([2.0, 3.0], [0.0, 1.0]) == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95": 0}
    assert values([0.0], [1.0]) == {"auroc": 0, "aupr_in": 0.5, "aupr_out": 0.5, "fpr95": 1}
    alike = values(torch.zeros(30), torch.zeros(10))
    assert alike == {"auroc": 0.5, "aupr_in": 0.75, "aupr_out": 0.25, "fpr95": 1}


def test_ninety_five_percent_of_twenty_is_nineteen():
    assert values(np.arange(20.0), [0.5])["fpr95"] == 0
    assert values(np.arange(19.0), [0.5])["fpr95"] == 1


def test_intervals_cover_the_truth_and_narrow():
    generator = np.random.default_rng(1)
    truth = 0.7602  # of normal(1) against normal(0): the standard normal's distribution at 1 / sqrt(2)
    drawn = [
        detection(generator.normal(1, 1, 80), generator.normal(0, 1, 80), draws=100)["auroc"]
        for _ in range(25)
    ]
    assert 0.8 <= np.mean([each.low <= truth <= each.high for each in drawn]) <= 1
    wide = detection(generator.normal(1, 1, 100), generator.normal(0, 1, 100))
    narrow = detection(generator.normal(1, 1, 4000), generator.normal(0, 1, 4000), draws=50)
    assert all(narrow[name].half_width < wide[name].half_width / 3 for name in wide)
    assert all(each.low <= each.value <= each.high for each in wide.values())


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], "what is inside"),
        ([1.0], [[1.0]], "what is outside"),
        ([1.0], [float("nan")], "not finite"),
    ],
)
def test_what_cannot_be_measured_is_named(inside, outside, message):
    with pytest.raises(ClipxError, match=message):
        detection(inside, outside)
