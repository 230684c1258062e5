import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.probed_cross_entropy import ProbedCrossEntropy


def drawn(start, *shape):
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + start).view(shape)


class Batch(SimpleNamespace):
    def image(self):
        return self.rows

    def __getitem__(self, field):
        return {"label": self.label}[field]


def test_the_head_starts_as_the_probe_bias_and_all():
    weight, bias, rows, labels = drawn(3, 4, 6), drawn(1, 4), drawn(9, 2, 6), torch.tensor([3, 0])
    objective = ProbedCrossEntropy((weight, bias))
    expected = functional.cross_entropy(rows @ weight.T + bias, labels)
    found = objective(Batch(rows=rows, label=labels))["cross_entropy"]
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    assert all(each.requires_grad for each in objective.head.parameters())
    assert objective.head.bias.data_ptr() != bias.data_ptr()


def test_smoothing_is_that_of_cross_entropy():
    weight, bias, rows, labels = drawn(3, 4, 6), drawn(1, 4), drawn(9, 2, 6), torch.tensor([3, 0])
    expected = functional.cross_entropy(rows @ weight.T + bias, labels, label_smoothing=0.2)
    found = ProbedCrossEntropy((weight, bias), label_smoothing=0.2)(Batch(rows=rows, label=labels))
    assert found["cross_entropy"].item() == pytest.approx(expected.item(), abs=1e-12)
    with pytest.raises(ClipxError, match="label_smoothing"):
        ProbedCrossEntropy((weight, bias), label_smoothing=1.0)
