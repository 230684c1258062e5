import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.objectives.heads import BatchNormAcross, mlp, negative_cosine


def test_a_head_has_the_layers_it_is_told():
    head = mlp([8, 16, 4], last_norm=True, last_affine=False)
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.Linear, BatchNormAcross, nn.ReLU, nn.Linear, BatchNormAcross]
    assert head[-1].weight is None
    assert head[0].bias is None
    assert [type(layer) for layer in mlp([8, 16, 4], norm=False)] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head(torch.randn(6, 8)).shape == (6, 4)
    with pytest.raises(ClipxError, match="widths"):
        mlp([8])
    with pytest.raises(ClipxError, match="2 rows"):
        head.train()(torch.randn(1, 8))


def test_batch_norm_is_torchs_in_one_process():
    torch.manual_seed(0)
    own, theirs = BatchNormAcross(5), nn.BatchNorm1d(5)
    rows = torch.randn(7, 5)
    torch.testing.assert_close(own(rows), theirs(rows))
    torch.testing.assert_close(own.state_dict(), theirs.state_dict())


def test_batch_norm_of_processes_is_that_of_all_rows(processes):
    theirs = nn.BatchNorm1d(5).double()
    rows = torch.randn(
        2 * len(processes) * 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    rows = rows[: len(processes) * 3].requires_grad_()
    normed = theirs(rows)
    normed.square().mul(torch.arange(len(rows))[:, None]).mean().backward()
    for rank, found in enumerate(processes):
        mine = slice(rank * 3, (rank + 1) * 3)
        torch.testing.assert_close(found["batch norm"]["rows"], normed[mine].detach())
        # Each process differentiates the mean over its own rows; their mean is that over all.
        torch.testing.assert_close(found["batch norm"]["gradient"], rows.grad[mine] * len(processes))
        torch.testing.assert_close(found["batch norm"]["state"], theirs.state_dict())


def test_the_cosine_of_a_prediction_has_no_gradient_in_what_is_wanted():
    predicted, wanted = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    negative_cosine(predicted, wanted).backward()
    assert wanted.grad is None
    assert negative_cosine(predicted, predicted).item() == pytest.approx(-1)
