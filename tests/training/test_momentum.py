import pytest
import torch
from torch import nn

from clipx.training.momentum import Momentum, rising_momentum


def test_it_follows_and_learns_nothing_itself():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    copy = Momentum(module).train()
    assert not any(each.requires_grad for each in copy.parameters())
    assert not any(each.training for each in copy.modules())
    before = copy.module[0].weight.clone()
    with torch.no_grad():
        module[0].weight.add_(1)
        module[1].running_mean.fill_(7)
    copy.follow(module, 0.9)
    torch.testing.assert_close(copy.module[0].weight, before + 0.1)
    assert copy.module[1].running_mean.eq(7).all()
    rows = torch.randn(4, 3)
    assert torch.equal(copy(rows), copy(rows))
    copy.follow(module, 0.0)
    torch.testing.assert_close(copy.module[0].weight, module[0].weight)


def test_batch_norms_alone_may_take_statistics_from_the_batch():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    copy = Momentum(module, batch_statistics=True).train()
    assert [each.training for each in copy.module] == [True, False]
    rows = 5 + torch.randn(40, 3)
    torch.testing.assert_close(copy(rows).mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert not copy.eval().module[0].training


def test_momentum_rises_on_half_a_cosine():
    assert [rising_momentum(0.996, share) for share in (0, 0.5, 1)] == pytest.approx([0.996, 0.998, 1])
