import itertools
import math

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.alignment import alignment
from clipx.objectives.infonce import info_nce
from clipx.objectives.uniformity import CrossUniformity, Uniformity, cross_uniformity, uniformity
from clipx.probes import geometry


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def drawn(n, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(2, n, d, generator=generator, dtype=torch.float64), dim=-1)


class Pairs:
    """Encoded pairs."""

    def image(self):
        return IMAGE

    def text(self):
        return TEXT


def test_the_published_case():
    assert uniformity(IMAGE).item() == pytest.approx(-2.047597, abs=5e-7)
    assert uniformity(TEXT).item() == pytest.approx(-1.852940, abs=5e-7)
    (spread,) = Uniformity()(Pairs()).values()
    (cross,) = CrossUniformity()(Pairs()).values()
    assert spread.item() == pytest.approx(-1.950269, abs=5e-7)
    assert cross.item() == pytest.approx(-1.889127, abs=5e-7)
    contrast = info_nce(IMAGE, TEXT, 100.0)
    assert contrast.item() == pytest.approx(0, abs=5e-7)
    cua = contrast + spread + alignment(IMAGE, TEXT)
    assert cua.item() == pytest.approx(-1.908848, abs=5e-7)
    assert (cua + cross).item() == pytest.approx(-3.797975, abs=5e-7)


@pytest.mark.parametrize("t", [0.5, 2.0, 30.0])
def test_every_pair_of_others_counts_once_and_none_with_itself(t):
    image, text = drawn(7)
    squares = [(one - other).square().sum() for one, other in itertools.combinations(image, 2)]
    expected = torch.stack([(-t * each).exp() for each in squares]).mean().log()
    torch.testing.assert_close(uniformity(image, t), expected)
    squares = [(image[i] - text[j]).square().sum() for i, j in itertools.permutations(range(7), 2)]
    expected = torch.stack([(-t * each).exp() for each in squares]).mean().log()
    torch.testing.assert_close(cross_uniformity(image, text, t), expected)
    pairs = torch.arange(7)[:, None].expand(7, 2)
    torch.testing.assert_close(uniformity(image, t), geometry.uniformity(image, t)[0])
    torch.testing.assert_close(
        cross_uniformity(image, text, t), geometry.cross_uniformity(image, text, pairs, t)[0]
    )


def test_a_sharp_kernel_does_not_underflow():
    poles = torch.tensor([[1.0, 0], [-1, 0]])
    assert uniformity(poles, 1000.0).item() == pytest.approx(-4000)


def test_gradients():
    image, text = (rows.requires_grad_() for rows in drawn(4, 3).unbind())
    assert torch.autograd.gradcheck(uniformity, (image,))
    assert torch.autograd.gradcheck(cross_uniformity, (image, text))


def test_rows_that_are_the_same_get_a_finite_gradient():
    rows = IMAGE[[0, 0, 1]].clone().requires_grad_()
    (uniformity(rows) + cross_uniformity(rows, IMAGE[[0, 0, 1]])).backward()
    assert rows.grad.isfinite().all()


def test_it_spreads_what_lies_together():
    rows = (torch.tensor([[1.0, 0, 0, 0]]) + 0.1 * drawn(40, 4)[0].float()).requires_grad_()
    optimizer = torch.optim.SGD([rows], lr=3.0)
    values = []
    for _ in range(60):
        loss = uniformity(functional.normalize(rows, dim=-1))
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert values[0] > -0.2
    assert values[-1] < -2.5
    assert functional.normalize(rows, dim=-1).mean(0).norm().item() < 0.1


def test_mistakes_are_named():
    for figure in (uniformity, lambda rows: cross_uniformity(rows, rows)):
        with pytest.raises(ClipxError, match="two pairs or more, the batch has 1"):
            figure(IMAGE[:1])
    for kind, t in itertools.product((Uniformity, CrossUniformity), (0, -1, math.nan, math.inf)):
        with pytest.raises(ClipxError, match=f"t={t} must be above 0"):
            kind(t=t)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "alignment")
    worlds.check_alone(processes, "uniformity")
    worlds.check_alone(processes, "cross_uniformity")
