import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.surgery.lora import LowRank, add_lora, low_rank, scale_of


def filled(layer, rank=2, **given):
    """A change that is none no more, in float64."""
    torch.manual_seed(0)
    change = LowRank(layer.double(), rank, **given).double()
    nn.init.normal_(change.up)
    return change


def test_the_published_case():
    up, down = torch.diag(torch.tensor([0.1, 0.2])).double(), torch.eye(2).double()
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
    change = LowRank(layer, 2, alpha=1.0)
    with torch.no_grad():
        change.up.copy_(up)
        change.down.copy_(down)
    expected = torch.tensor([[1.070711, 2], [3, 4.141421]]).double()
    torch.testing.assert_close(change.weight, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.weight + low_rank(up, down, scale_of(1, 2)), change.weight)
    merged = change.merged()
    torch.testing.assert_close(merged.weight, expected, atol=1e-6, rtol=0)
    assert merged is layer


def test_the_root_of_the_rank_divides():
    assert scale_of(3, 4) == 1.5
    assert scale_of(3, 4, "linear") == 0.75


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False)])
@pytest.mark.parametrize("given", [{}, {"alpha": 3.0, "scaling": "linear", "rank": 3}])
def test_it_begins_as_nothing_and_merges(layer, given):
    change = LowRank(layer.double(), **{"rank": 2, **given})
    x = torch.randn(5, 6).double()
    assert torch.equal(change(x), layer(x))
    change = filled(layer, **given)
    expected = layer(x) + change.scale * x @ change.down.T @ change.up.T
    torch.testing.assert_close(change(x), expected)
    torch.testing.assert_close(change.merged()(x), expected)


@pytest.mark.parametrize("given", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}])
def test_convolutions(given):
    layer = nn.Conv2d(3, 5, 3, bias=False, **given)
    change = filled(layer)
    x = torch.randn(2, 3, 9, 9).double()
    before, changed = layer(x).detach(), change(x).detach()
    assert changed.shape == before.shape
    assert float((changed - before).abs().max()) > 0.1
    torch.testing.assert_close(change.merged()(x), changed)


def test_dropout_falls_on_the_input_of_the_change_alone():
    layer, x = nn.Linear(6, 4), torch.randn(50, 6).double()
    change = filled(layer, dropout=0.5)
    torch.manual_seed(3)
    seen = functional.dropout(x, 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(change(x), layer(x) + change.scale * seen @ change.down.T @ change.up.T)
    change.eval()
    torch.testing.assert_close(change(x), layer(x) + change.scale * x @ change.down.T @ change.up.T)
    # Going to and fro between the modes leaves the layer as it is.
    weight = layer.weight.clone()
    for mode in (True, False, False, True, True):
        change.train(mode)(x)
    assert torch.equal(layer.weight, weight)


def test_half_precision_keeps_what_it_could_not_hold():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    change = LowRank(layer, 1)
    nn.init.constant_(change.down, 1e7)  # above what float16 holds
    nn.init.constant_(change.up, 1e-9)  # and below
    with torch.autocast("cpu", dtype=torch.float16):
        out = change(torch.ones(1, 1))
    assert out.dtype is torch.float16
    assert float(out.detach()) == pytest.approx(1e-2, rel=1e-3)
    half = LowRank(nn.Linear(2, 2).half(), 1)
    assert half.up.dtype is half.down.dtype is torch.float32
    assert half.weight.dtype is torch.float16


def test_only_up_has_a_gradient_at_first():
    change = LowRank(nn.Linear(6, 4), 2)
    change(torch.randn(5, 6)).sum().backward()
    assert float(change.down.grad.abs().max()) == 0
    assert float(change.up.grad.abs().max()) > 0
    bound = 1 / 6**0.5  # kaiming uniform with a = sqrt 5
    assert 0.3 * bound < float(change.down.detach().abs().max()) <= bound


def test_every_tower_learns_through_its_changes(micro):
    own = copy.deepcopy(micro).requires_grad_(False)
    changes = add_lora(own, rank=1)
    loss = own.encode_image(torch.randn(4, 3, 32, 32)) @ own.encode_text(own.tokenize(["a", "b c"])).T
    loss[0, 0].backward()
    assert len(changes) == 6
    assert all(float(change.up.grad.abs().max()) > 0 for change in changes.values())


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one(rank):
    with pytest.raises(ClipxError, match=f"rank is {rank}"):
        LowRank(nn.Linear(2, 2), rank)
