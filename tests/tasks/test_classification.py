import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from clipx.errors import ClipxError
from clipx.tasks.classification import accuracy, confusion_matrix, join, outcomes, per_class


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (500,), generator=generator)
    logits = torch.randn(500, 9, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 9)
    return logits, labels


def values(seen):
    return {name: estimate.value for name, estimate in accuracy(seen).items()}


def test_agrees_with_scikit_learn(drawn):
    logits, labels = drawn
    seen = outcomes(logits, labels)
    predictions = logits.argmax(1).numpy()
    truth = labels.numpy()
    found = values(seen)
    assert found["top1"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predictions))
    assert found["top5"] == pytest.approx(sklearn_metrics.top_k_accuracy_score(truth, logits.numpy(), k=5))
    assert found["mean_per_class"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, predictions)
    )
    recalls = sklearn_metrics.recall_score(truth, predictions, average=None)
    assert found["worst_class"] == pytest.approx(recalls.min())
    assert (confusion_matrix(seen) == sklearn_metrics.confusion_matrix(truth, predictions)).all()
    precisions = sklearn_metrics.precision_score(truth, predictions, average=None)
    rows = per_class(seen, [f"c{i}" for i in range(9)])
    assert [row.recall for row in rows] == pytest.approx(recalls)
    assert [row.precision for row in rows] == pytest.approx(precisions)
    assert [row.support for row in rows] == np.bincount(truth).tolist()


def test_by_hand():
    logits = [[3.0, 1, 0], [3, 1, 0], [0, 2, 1], [1, 2, 3], [9, 9, 9]]
    seen = outcomes(logits, [0, 1, 1, 2, -1])
    found = values(seen)
    assert found == {"top1": 0.75, "top5": 1.0, "mean_per_class": pytest.approx(5 / 6), "worst_class": 0.5}
    assert confusion_matrix(seen).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    second = per_class(seen, ["ant", "bee", "cow"])[1]
    assert (second.support, second.recall, second.precision, second.confused_with) == (2, 0.5, 1.0, "ant")


def test_chunks_and_order_do_not_matter(drawn):
    logits, labels = drawn
    whole = accuracy(outcomes(logits, labels))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    parts = zip(logits[order].split(37), labels[order].split(37), strict=True)
    assert accuracy(join(outcomes(*part) for part in parts)) == whole


def test_unlabelled_rows_and_absent_classes_do_not_count(drawn):
    logits, labels = drawn
    hidden = torch.where(labels < 4, labels, -1)
    kept = labels < 4
    assert accuracy(outcomes(logits, hidden)) == accuracy(outcomes(logits[kept], labels[kept]))
    rows = per_class(outcomes(logits, hidden), list("abcdefghi"))
    assert rows[8].recall is None
    assert rows[8].support == 0


def test_a_constant_score_is_chance_not_perfect():
    labels = torch.arange(4).repeat(25)
    found = values(outcomes(torch.zeros(100, 4), labels))
    assert found["top1"] == 0.25
    assert found["worst_class"] == 0
    many = torch.arange(10).repeat(5)
    assert values(outcomes(torch.zeros(50, 10), many))["top5"] == 0.5


def test_top1_is_the_diagonal_of_the_confusion_matrix_even_with_ties():
    logits = torch.randint(0, 3, (400, 6), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.randint(0, 6, (400,), generator=torch.Generator().manual_seed(1))
    seen = outcomes(logits, labels)
    assert confusion_matrix(seen).trace() / 400 == values(seen)["top1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_and_numpy(drawn, dtype):
    logits, labels = drawn
    assert len(outcomes(logits.to(dtype), labels)) == 500
    assert accuracy(outcomes(logits.numpy(), labels.numpy())) == accuracy(outcomes(logits, labels))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), [0, 3], "label 3 is outside the 3 classes"),
        (torch.zeros(2, 3), [0, -2], "label -2 is outside"),
        (torch.zeros(2, 3), [0], "do not match"),
        (torch.zeros(2, 3), [0.0, 1.0], "must be integers"),
        (torch.tensor([[0.0, float("nan")]]), [0], "NaN"),
    ],
)
def test_what_cannot_be_measured_is_named(logits, labels, message):
    with pytest.raises(ClipxError, match=message):
        outcomes(logits, labels)


def test_nothing_to_measure():
    with pytest.raises(ClipxError, match="no row has a label"):
        accuracy(outcomes(torch.zeros(2, 3), [-1, -1]))
    with pytest.raises(ClipxError, match="no outcomes"):
        join([])
    with pytest.raises(ClipxError, match="different classes"):
        join([outcomes(torch.zeros(1, 3), [0]), outcomes(torch.zeros(1, 2), [0])])
    with pytest.raises(ClipxError, match="2 class names for 3"):
        per_class(outcomes(torch.zeros(1, 3), [0]), ["a", "b"])


def test_intervals_hold_their_value(drawn):
    for estimate in accuracy(outcomes(*drawn)).values():
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.high > estimate.low
