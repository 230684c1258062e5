import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from clipx.errors import ClipxError
from clipx.tasks.calibration import (
    brier,
    calibration,
    classwise_error,
    expected_error,
    maximum_error,
    reliability,
    temperature,
)


@pytest.fixture
def drawn():
    """Logits that are twice as sure as they are right to be, and labels drawn from the honest ones."""
    generator = torch.Generator().manual_seed(0)
    honest = 1.5 * torch.randn(3000, 6, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    return 2 * honest, labels


def test_by_hand():
    """Two bins of two: confidences 0.6, 0.8 (one right) and 0.2, 0.4 (both right)."""
    bins = reliability([0.6, 0.8, 0.2, 0.4], [True, False, True, True], bins=2)
    assert bins.count.tolist() == [2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.3, 0.7])
    assert bins.accuracy.tolist() == [1, 0.5]
    assert expected_error(bins) == pytest.approx((0.7 + 0.2) / 2)
    assert maximum_error(bins) == pytest.approx(0.7)


def test_edges_belong_to_the_bin_below():
    assert reliability([0.0, 0.5, 1.0], [0, 0, 0], bins=2).count.tolist() == [2, 1]


def test_equal_mass_bins_hold_equally_many_and_keep_ties_together():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 4
    assert reliability(values, values > 0.5, bins=10, scheme="equal-mass").count.tolist() == [100] * 10
    tied = reliability([0.5] * 8 + [0.9] * 2, [1] * 10, bins=5, scheme="equal-mass")
    assert sorted(tied.count.tolist()) == [0, 0, 0, 2, 8]
    order = torch.randperm(10)
    again = reliability(torch.tensor([0.5] * 8 + [0.9] * 2)[order], [1] * 10, bins=5, scheme="equal-mass")
    assert expected_error(again) == pytest.approx(expected_error(tied))


@pytest.mark.parametrize("bins", [5, 15])
def test_bins_agree_with_scikit_learn(drawn, bins):
    logits, labels = drawn
    confidence, predicted = logits.softmax(1).max(1)
    correct = predicted == labels
    ours = reliability(confidence, correct, bins=bins)
    there = ours.count > 0
    accuracy, stated = calibration_curve(correct, confidence, n_bins=bins)
    assert ours.accuracy[there].tolist() == pytest.approx(accuracy)
    assert ours.confidence[there].tolist() == pytest.approx(stated)
    gaps, shares = np.abs(accuracy - stated), (ours.count[there] / len(labels)).numpy()
    assert expected_error(ours) == pytest.approx((gaps * shares).sum())
    assert maximum_error(ours) == pytest.approx(gaps.max())


def test_agrees_with_scikit_learn(drawn):
    logits, labels = drawn
    found = calibration(logits, labels)
    probabilities = logits.softmax(1)
    assert found["nll"].value == pytest.approx(log_loss(labels, probabilities))
    theirs = np.mean([brier_score_loss(labels == place, probabilities[:, place]) for place in range(6)])
    assert found["brier"].value == pytest.approx(6 * theirs)
    assert brier(probabilities, labels).mean() == pytest.approx(found["brier"].value)


def test_classwise_error_by_hand():
    """Class 0 has p = 0.7 and is right half the time, class 1 the mirror image of it."""
    assert classwise_error([[0.7, 0.3], [0.7, 0.3]], [0, 1]) == pytest.approx(0.2)
    probabilities, labels = (
        torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6]]),
        torch.tensor([0, 0, 1, 1]),
    )
    one_bin = classwise_error(probabilities, labels, bins=1)
    assert one_bin == pytest.approx(abs(0.525 - 0.5))
    assert classwise_error(probabilities, labels, bins=4, scheme="equal-mass") == pytest.approx(
        (0.1 + 0.4 + 0.2 + 0.4) / 4
    )


def test_temperature_finds_what_made_the_logits_too_sure(drawn):
    logits, labels = drawn
    found = temperature(logits, labels)
    assert found == pytest.approx(2, rel=0.06)
    cross_entropy = torch.nn.functional.cross_entropy
    best = cross_entropy(logits / found, labels)
    assert all(best < cross_entropy(logits / (found * factor), labels) for factor in (0.98, 1.02))
    before, after = calibration(logits, labels), calibration(logits / found, labels)
    assert before["ece"].value > 0.15
    assert after["ece"].value < 0.03
    assert after["adaptive_ece"].value < 0.03
    assert temperature(logits / found, labels) == pytest.approx(1, abs=1e-6)


def test_temperature_stops_where_the_likelihood_has_no_end():
    assert temperature([[2.0, 1.0], [1.0, 3.0]], [0, 1]) == 1e-3
    assert temperature([[2.0, 1.0], [1.0, 3.0]], [1, 0]) == 1e3


def test_intervals_hold_the_truth_of_a_calibrated_model_most_of_the_time():
    held = 0
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        honest = torch.randn(400, 4, generator=generator)
        labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
        found = calibration(1.6 * honest, labels, draws=100)["ece"]
        assert found.low <= found.value <= found.high
        # The true error: the gap between stated and honest probability of the predicted class.
        held += found.low <= TRUE_ECE <= found.high
    assert held >= 20


def _true_ece():
    generator = torch.Generator().manual_seed(99)
    honest = torch.randn(200_000, 4, generator=generator)
    stated, predicted = (1.6 * honest).softmax(1).max(1)
    right = honest.softmax(1).gather(1, predicted[:, None])[:, 0]
    place = (stated * 15).ceil().long() - 1
    gaps = [float((stated - right)[place == each].sum().abs()) for each in range(15)]
    return sum(gaps) / len(stated)


TRUE_ECE = _true_ece()


def test_unlabelled_rows_do_not_count(drawn):
    logits, labels = drawn
    hidden = torch.where(torch.arange(3000) < 100, labels, -1)
    assert calibration(logits, hidden) == calibration(logits[:100], labels[:100])
    assert temperature(logits, hidden) == temperature(logits[:100], labels[:100])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), [0, 3], "labels must lie in"),
        (torch.zeros(2, 3), [-1, -1], "no row has a label"),
        (torch.zeros(2, 3), [0], "do not match"),
        (torch.full((1, 2), float("nan")), [0], "NaN"),
    ],
)
def test_what_cannot_be_measured_is_named(logits, labels, message):
    for measure in (calibration, temperature):
        with pytest.raises(ClipxError, match=message):
            measure(logits, labels)


def test_confidences_are_probabilities():
    with pytest.raises(ClipxError, match=r"in \[0, 1\]"):
        reliability([1.5], [True])
    with pytest.raises(ClipxError, match="do not match"):
        reliability([], [])
