import math

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.class_contrast import ClassContrast, class_contrast


def drawn(start, *shape):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


IMAGE, TEXT = (functional.normalize(drawn(start, 3, 4), dim=-1) for start in (0, 1))
LABELS = torch.tensor([0, 1, 0])


def test_the_losses_of_the_official_code():
    assert float(class_contrast(IMAGE, TEXT, LABELS, 10.0)) == pytest.approx(1.439096, abs=1e-6)
    found = class_contrast(IMAGE, TEXT, LABELS, 10.0, targets="equal")
    assert float(found) == pytest.approx(6.617723, abs=1e-6)


def test_ignored_pairs_are_in_no_denominator():
    logits = 10 * IMAGE @ TEXT.T
    kept = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    expected = 0.0
    for scores, mask in ((logits, kept), (logits.T, kept.T)):
        for row in range(3):
            expected += float(scores[row][mask[row]].logsumexp(0) - scores[row, row]) / 6
    found = class_contrast(IMAGE, TEXT, LABELS, 10.0, targets="ignore")
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_without_shared_classes_all_targets_agree():
    apart = torch.arange(3)
    losses = [
        float(class_contrast(IMAGE, TEXT, apart, 10.0, targets=targets))
        for targets in ("identity", "equal", "ignore")
    ]
    assert losses == pytest.approx([losses[0]] * 3)


@pytest.mark.parametrize("targets", ["identity", "equal", "ignore"])
def test_rows_of_one_process_among_those_of_all(targets):
    image, text = (functional.normalize(drawn(start, 4, 4), dim=-1) for start in (2, 5))
    labels = torch.tensor([1, 0, 1, 1])
    whole = class_contrast(image, text, labels, 7.0, targets=targets)
    every = {"all_image": image, "all_text": text, "all_labels": labels, "targets": targets}
    halves = [
        class_contrast(image[rows], text[rows], labels[rows], 7.0, offset=rows.start, **every)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert float(sum(halves) / 2) == pytest.approx(float(whole), abs=1e-12)


def test_unknown_targets():
    with pytest.raises(ClipxError, match="no targets 'same'"):
        ClassContrast("same")
