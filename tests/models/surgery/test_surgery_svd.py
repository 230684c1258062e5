import copy

import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.models.surgery.svd import SingularValues, decompose, shifted, train_singular_values

WEIGHT = torch.tensor([[3.0, 0], [4, 5]], dtype=torch.float64)


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_()
    return layer


def moved(layer, share=1.0):
    change = SingularValues(layer.double(), share)
    torch.manual_seed(0)
    with torch.no_grad():
        change.values.add_(torch.randn_like(change.values))
    return change


def test_the_published_case():
    left, values, right = decompose(WEIGHT)
    torch.testing.assert_close(values, torch.tensor([6.708204, 2.236068]).double(), atol=5e-7, rtol=0)
    shift = values * torch.tensor([0.1, -0.5])
    expected = torch.tensor([[2.4, 0.9], [4.7, 5.2]]).double()
    torch.testing.assert_close(shifted(WEIGHT, left, right, shift), expected)

    change = SingularValues(linear(WEIGHT))
    change(torch.tensor([[1.0, 2.0]]).double()).sum().backward()
    expected = torch.tensor([2.683282, -0.447214]).double()
    torch.testing.assert_close(change.values.grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3)])
def test_factors_make_the_weight(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    left, values, right = decompose(weight)
    assert values.shape == (min(shape),)
    assert torch.equal(values, values.sort(descending=True).values)
    torch.testing.assert_close((left * values) @ right, weight)
    assert decompose(weight.float())[0].dtype is torch.float32
    assert decompose(weight.half())[0].dtype is torch.float32


def test_it_begins_with_the_very_weight():
    layer = nn.Linear(40, 30)
    change = SingularValues(layer)
    assert torch.equal(change.weight, layer.weight)
    for rows in (3, 100):
        x = torch.randn(rows, 40)
        assert torch.equal(change(x), layer(x))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 50])
def test_few_rows_and_many_give_the_same(rows):
    layer = nn.Linear(9, 6)
    change = moved(layer)
    x = torch.randn(2, rows, 9).double()
    expected = x @ change.weight.T + layer.bias
    torch.testing.assert_close(change(x), expected)
    torch.testing.assert_close(change.merged()(x), expected)


def test_gradients_are_the_same_both_ways():
    change = moved(nn.Linear(30, 20))
    few = torch.randn(3, 30).double()
    (one,) = torch.autograd.grad(change(few).sin().sum(), change.values)
    padded = torch.cat([few, torch.zeros(60, 30).double()])
    (other,) = torch.autograd.grad(change(padded)[:3].sin().sum(), change.values)
    torch.testing.assert_close(one, other)


def test_the_new_singular_values_are_those_that_were_trained():
    change = SingularValues(linear(torch.randn(6, 9, dtype=torch.float64)))
    with torch.no_grad():
        change.values.copy_(torch.tensor([7.0, 5, 3, 2, 1, -0.5]))
    found = torch.linalg.svdvals(change.weight)
    torch.testing.assert_close(found, torch.tensor([7.0, 5, 3, 2, 1, 0.5]).double())


def test_a_share_leaves_the_small_ones_in_place():
    layer = linear(torch.randn(6, 9, dtype=torch.float64))
    before = torch.linalg.svdvals(layer.weight)
    change = SingularValues(layer, 0.5)
    assert torch.equal(change.weight, layer.weight)
    with torch.no_grad():
        change.values.mul_(2)
    expected = torch.cat([2 * before[:3], before[3:]])
    torch.testing.assert_close(torch.linalg.svdvals(change.weight), expected)
    assert len(SingularValues(layer, 0.01).values) == 1


def test_convolutions():
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    change = moved(layer)
    x = torch.randn(2, 3, 9, 9).double()
    before, changed = layer(x).detach(), change(x).detach()
    assert float((changed - before).abs().max()) > 0.1
    torch.testing.assert_close(change.merged()(x), changed)


def test_half_precision_does_not_make_the_weight():
    layer = nn.Linear(8, 8)
    change = SingularValues(layer)
    with torch.no_grad():
        change.values.add_(0.1)
    expected = change.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(change.weight, expected)
        for rows in (1, 100):
            x = torch.randn(rows, 8)
            out = change(x)
            assert out.dtype is torch.bfloat16
            torch.testing.assert_close(out.float(), x @ expected.T + layer.bias, atol=0.05, rtol=0.02)


def test_only_singular_values_are_trained(micro):
    own = copy.deepcopy(micro).requires_grad_(False)
    changes = train_singular_values(own)
    trained = [name for name, parameter in own.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(changes) == 12
    assert all(name.endswith(".values") for name in trained)
    loss = own.encode_image(torch.randn(4, 3, 32, 32)) @ own.encode_text(own.tokenize(["a", "b c"])).T
    loss[0, 0].backward()
    assert all(float(change.values.grad.abs().max()) > 0 for change in changes.values())


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_out_of_range(share):
    with pytest.raises(ClipxError, match=f"share is {share}"):
        SingularValues(nn.Linear(2, 2), share)
