import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

from clipx.errors import ClipxError
from clipx.tasks.segmentation import class_iou, join, pixel_counts, segmentation


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (6, 9, 8), generator=generator)
    other = torch.randint(0, 5, (6, 9, 8), generator=generator)
    predicted = torch.where(torch.rand(6, 9, 8, generator=generator) < 0.6, target, other)
    target[torch.rand(6, 9, 8, generator=generator) < 0.1] = 255
    return predicted, target


def test_agrees_with_scikit_learn(drawn):
    predicted, target = drawn
    found = {name: each.value for name, each in segmentation(pixel_counts(*drawn, 7), draws=2).items()}
    kept = target != 255
    truth, ours = target[kept].numpy(), predicted[kept].numpy()
    shares = np.bincount(truth) / len(truth)
    iou = jaccard_score(truth, ours, average=None)
    assert found == pytest.approx(
        {
            "miou": iou.mean(),
            "pixel_accuracy": accuracy_score(truth, ours),
            "mean_accuracy": balanced_accuracy_score(truth, ours),
            "fw_iou": (shares * iou).sum(),
        }
    )
    assert class_iou(pixel_counts(*drawn, 7))[:5] == pytest.approx(iou)
    assert np.isnan(class_iou(pixel_counts(*drawn, 7))[5:]).all()


def test_by_hand():
    """Class 1 is predicted where nothing is: it has a union and counts; class 2 is nowhere and does not."""
    counts = pixel_counts(torch.tensor([[[0, 0, 1, 0]]]), torch.tensor([[[0, 0, 0, -1]]]), 3, ignore_index=-1)
    found = segmentation(counts, draws=2)
    assert class_iou(counts)[:2].tolist() == [2 / 3, 0]
    assert found["miou"].value == pytest.approx(1 / 3)
    assert found["mean_accuracy"].value == pytest.approx(2 / 3)


def test_batches_add_up(drawn):
    predicted, target = drawn
    parts = join(pixel_counts(p, t, 5) for p, t in zip(predicted.split(4), target.split(4), strict=True))
    assert segmentation(parts) == segmentation(pixel_counts(predicted, target, 5))
    assert len(pixel_counts(predicted[:0], target[:0], 5).hits) == 0


def test_intervals_are_over_images(drawn):
    found = segmentation(pixel_counts(*drawn, 5))
    assert all(each.low <= each.value <= each.high for each in found.values())
    alike = segmentation(pixel_counts(*(each[:1].repeat(50, 1, 1) for each in drawn), 5))
    assert all(each.half_width < 1e-9 for each in alike.values())
    assert all(each.half_width > 0.005 for each in found.values())


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 3), "do not match"),
        (torch.zeros(1, 2, 2), torch.full((1, 2, 2), 7), "target pixels have classes from 7 to 7"),
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2), "predicted pixels have classes from 3"),
    ],
)
def test_what_cannot_be_counted_is_named(predicted, target, message):
    with pytest.raises(ClipxError, match=message):
        pixel_counts(predicted.long(), target.long(), 3)


def test_nothing_to_measure():
    ignored = torch.full((1, 2, 2), 255)
    with pytest.raises(ClipxError, match="no pixel has a class"):
        segmentation(pixel_counts(torch.zeros_like(ignored), ignored, 3))
    with pytest.raises(ClipxError, match="no images"):
        join([])
