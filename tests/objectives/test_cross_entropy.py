import math
from types import SimpleNamespace

import pytest
import torch

from clipx.errors import ClipxError
from clipx.objectives.cross_entropy import CrossEntropy


class Batch(SimpleNamespace):
    def image(self):
        return self.rows

    def __getitem__(self, field):
        return {"label": self.label}[field]


def drawn(start, *shape):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


def test_label_smoothing_as_the_paper_has_it():
    objective = CrossEntropy(torch.eye(5, dtype=torch.float64), label_smoothing=0.1)
    batch = Batch(rows=3 * drawn(33, 2, 5), label=torch.tensor([1, 3]))
    assert objective(batch)["cross_entropy"].item() == pytest.approx(1.915298, abs=1e-6)


def test_the_head_starts_as_the_zero_shot_classifier():
    classifier = 14.0 * torch.nn.functional.normalize(drawn(3, 4, 6), dim=-1)
    head = CrossEntropy(classifier).head
    rows = drawn(9, 2, 6)
    torch.testing.assert_close(head(rows), rows @ classifier.T)
    assert head.weight.requires_grad
    assert head.weight.data_ptr() != classifier.data_ptr()


def test_a_small_start_knows_no_class():
    torch.manual_seed(0)
    head = CrossEntropy(torch.ones(64, 64), init="small").head
    assert head.weight.std().item() == pytest.approx(2e-5, rel=0.15)
    assert head.weight.abs().max().item() <= 4e-5
    assert not head.bias.any()


def test_with_zero_weights_the_output_is_the_bias():
    head = CrossEntropy(torch.zeros(3, 4)).head
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert head(torch.randn(1, 4)).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("options", [{"init": "zeros"}, {"label_smoothing": 1.0}, {"label_smoothing": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(ClipxError):
        CrossEntropy(torch.eye(2), **options)
