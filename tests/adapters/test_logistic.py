"""The sweep's solver against closed forms and scikit-learn."""

import math
import warnings

import numpy as np
import pytest
import torch

from clipx.adapters.logistic import LogisticPath
from clipx.errors import ClipxError

TWO = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([1, 0])


def clouds(count=400, width=12, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, width, dtype=torch.float64)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return (0.7 * centres[labels] + noise) * scales + 2.0, labels


@pytest.mark.parametrize(("c", "expected"), [(1.0, 0.674832), (0.316, 0.273114)])
def test_two_classes_are_one_vector(c, expected):
    found = LogisticPath(*TWO, 2).fit(c, tolerance=1e-12)
    assert float(found.weight[1] - found.weight[0]) == pytest.approx(expected, abs=1e-6)
    assert found.bias.tolist() == pytest.approx([0, 0], abs=1e-9)


def test_two_vectors_for_two_classes_carry_half_the_penalty():
    # The two-vector form at C is the single-vector form at 2 C: logit difference 1.042597 at C = 1.
    found = LogisticPath(*TWO, 2).fit(2.0, tolerance=1e-12)
    assert float(found.weight[1] - found.weight[0]) == pytest.approx(1.042597, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_probabilities_are_those_of_scikit_learn(classes, c):
    from sklearn.linear_model import LogisticRegression

    rows, labels = clouds(classes=classes)
    ours = LogisticPath(rows, labels, classes).fit(c, tolerance=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(rows.numpy(), labels.numpy())
    expected = theirs.predict_proba(rows.numpy())
    assert ours.converged
    assert np.abs(ours.logits(rows).softmax(1).numpy() - expected).max() < 1e-4


def test_a_warm_start_ends_in_the_same_place_sooner():
    path = LogisticPath(*clouds(), 5)
    cold = path.fit(10.0, tolerance=1e-9)
    warm = path.fit(10.0, start=path.fit(5.0, tolerance=1e-9), tolerance=1e-9)
    assert torch.allclose(warm.weight, cold.weight, atol=1e-6)
    assert warm.iterations < cold.iterations


def test_single_precision_is_enough_for_the_answers():
    rows, labels = clouds()
    double, single = (LogisticPath(each, labels, 5).fit(1.0) for each in (rows, rows.float()))
    assert single.weight.dtype == torch.float32
    assert single.converged
    assert (double.logits(rows).softmax(1) - single.logits(rows.float()).softmax(1)).abs().max() < 1e-2


def test_directions_without_variance_do_no_harm():
    rows, labels = clouds()
    wide = torch.cat([rows, rows[:, :3], torch.ones(len(rows), 4, dtype=torch.float64)], 1)
    found = LogisticPath(wide, labels, 5).fit(1.0, tolerance=1e-8)
    assert found.converged
    assert found.weight[:, -4:].abs().max() < 1e-8


def test_a_class_without_rows_keeps_its_column():
    rows, labels = clouds(classes=4)
    moved = torch.tensor([0, 1, 3, 4])[labels]
    found = LogisticPath(rows, moved, 6).fit(1.0)
    assert found.bias[[2, 5]].tolist() == [-math.inf, -math.inf]
    plain = LogisticPath(rows, labels, 4).fit(1.0)
    assert torch.allclose(found.logits(rows)[:, [0, 1, 3, 4]], plain.logits(rows), atol=1e-9)
    assert torch.equal(found.logits(rows).softmax(1)[:, [2, 5]], torch.zeros(len(rows), 2, dtype=rows.dtype))


def test_what_did_not_converge_says_so():
    found = LogisticPath(*clouds(), 5).fit(1.0, max_iter=2)
    assert not found.converged
    assert found.iterations == 2
    assert found.gradient > 1e-4


@pytest.mark.parametrize(
    ("rows", "labels", "classes", "message"),
    [
        (torch.ones(3, 2), torch.tensor([0, 0, 0]), 2, "1 class"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), 2, "0 class"),
        (torch.ones(3, 2), torch.tensor([0, 1]), 2, "do not match"),
        (torch.ones(2, 2), torch.tensor([0, 2]), 2, r"lie in \[0, 2\)"),
        (torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]), 2, "NaN"),
    ],
)
def test_what_cannot_be_fitted(rows, labels, classes, message):
    with pytest.raises(ClipxError, match=message):
        LogisticPath(rows, labels, classes)


@pytest.mark.parametrize("c", [0.0, -1.0, math.inf, math.nan])
def test_strengths_out_of_range(c):
    with pytest.raises(ClipxError, match="c is"):
        LogisticPath(*TWO, 2).fit(c)


def test_a_warm_start_does_not_stop_where_the_gradient_is_merely_small():
    # Many classes share the gradient, so each entry is small while the best weights are far away.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 50
    rows = torch.nn.functional.one_hot(labels, 50) + 0.3 * torch.randn(2000, 50, generator=generator)
    path = LogisticPath(0.02 * rows, labels, 50)
    warm = path.fit(1e4, start=path.fit(1.0, tolerance=1e-9))
    exact = path.fit(1e4, tolerance=1e-8)

    def loss(found):
        penalty = found.weight.square().sum() / (2e4 * len(rows))
        return float(torch.nn.functional.cross_entropy(found.logits(0.02 * rows), labels) + penalty)

    assert loss(warm) <= loss(exact) + 1e-4


def test_a_fit_may_start_from_other_rows():
    rows, labels = clouds()
    first = LogisticPath(rows[:200], labels[:200], 5).fit(1.0)
    path = LogisticPath(rows, labels, 5)
    cold, warm = path.fit(1.0), path.fit(1.0, start=first)
    assert warm.iterations < cold.iterations
    assert torch.allclose(warm.logits(rows).softmax(1), cold.logits(rows).softmax(1), atol=5e-3)
    few = LogisticPath(rows[labels < 3], labels[labels < 3], 5).fit(1.0)
    assert path.fit(1.0, start=few).converged
