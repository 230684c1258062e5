import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clipx.errors import ClipxError
from clipx.tasks.multilabel import average_precisions, multi_label


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    targets = (generator.random((200, 7)) < 0.2).astype(int)
    return (generator.normal(size=(200, 7)) + targets).round(1), targets


def test_agrees_with_scikit_learn(drawn):
    scores, targets = drawn
    assert multi_label(scores, targets, draws=2)["map"].value == pytest.approx(
        average_precision_score(targets, scores, average="macro")
    )
    assert average_precisions(scores, targets) == pytest.approx(
        average_precision_score(targets, scores, average=None)
    )


def test_by_hand():
    scores = [[0.9, 0.1], [0.8, 0.9], [0.7, 0.2]]
    assert average_precisions(scores, [[1, 0], [0, 0], [1, 1]]).tolist() == pytest.approx(
        [(1 + 2 / 3) / 2, 1 / 2]
    )


def test_unknown_entries_and_absent_classes_do_not_count(drawn):
    scores, targets = drawn
    hidden = targets.copy()
    hidden[50:, 0] = -1
    hidden[:, 3] = 0
    found = average_precisions(scores, hidden)
    assert found[0] == pytest.approx(average_precision_score(targets[:50, 0], scores[:50, 0]))
    assert np.isnan(found[3])
    assert multi_label(scores, hidden, draws=2)["map"].value == pytest.approx(np.nanmean(found))


def test_intervals_cover_the_truth():
    generator = np.random.default_rng(1)

    def world(size):
        targets = (generator.random((size, 3)) < 0.3).astype(int)
        return generator.normal(size=(size, 3)) + 1.5 * targets, targets

    truth = np.nanmean(average_precisions(*world(20_000)))
    drawn = [multi_label(*world(150), draws=60)["map"] for _ in range(25)]
    assert np.mean([each.low <= truth <= each.high for each in drawn]) >= 0.8


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([[0.1]], [[1, 0]], "do not match"),
        ([[0.1]], [[2]], "1, 0 or -1"),
        ([[float("nan")]], [[1]], "NaN"),
        ([[0.1]], [[0]], "no image shows any class"),
    ],
)
def test_what_cannot_be_measured_is_named(scores, targets, message):
    for measure in (multi_label, average_precisions):
        with pytest.raises(ClipxError, match=message):
            measure(scores, targets)
