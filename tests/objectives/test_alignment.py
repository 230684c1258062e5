import math
import warnings

import pytest
import torch
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.alignment import Alignment, alignment, negative_pair_cosine
from clipx.objectives.infonce import info_nce
from clipx.probes import geometry


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


class Pairs:
    """Encoded pairs."""

    def __init__(self, image=IMAGE, text=TEXT):
        self.rows = image.clone().requires_grad_(), text.clone().requires_grad_()

    def image(self):
        return self.rows[0]

    def text(self):
        return self.rows[1]


def test_the_published_case():
    contrast = info_nce(IMAGE, TEXT, 10.0).item()
    assert alignment(IMAGE, TEXT).item() == pytest.approx(0.041421, abs=5e-7)
    assert -negative_pair_cosine(IMAGE, TEXT).item() == pytest.approx(0.979289, abs=5e-7)
    assert contrast + 0.1 * negative_pair_cosine(IMAGE, TEXT).item() == pytest.approx(-0.055013, abs=5e-7)
    assert contrast + 0.1 * alignment(IMAGE, TEXT).item() == pytest.approx(0.047059, abs=5e-7)


def test_it_is_the_figure_of_the_probe():
    pairs = torch.arange(3)[:, None].expand(3, 2)
    torch.testing.assert_close(alignment(IMAGE, TEXT), geometry.alignment(IMAGE, TEXT, pairs).mean())


def test_the_exponent_is_that_of_the_distance():
    angle = torch.tensor([0.3, 1.1], dtype=torch.float64)
    image = torch.stack([angle.cos(), angle.sin()], 1)
    text = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2, 2)
    chords = [2 * math.sin(0.3 / 2), 2 * math.sin(1.1 / 2)]
    for exponent in (1.0, 2.0, 3.0):
        expected = sum(chord**exponent for chord in chords) / 2
        assert alignment(image, text, exponent).item() == pytest.approx(expected, rel=1e-12)


def test_gradients():
    rows = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for exponent in (1.0, 2.0, 2.5):
        assert torch.autograd.gradcheck(lambda *pair, power=exponent: alignment(*pair, power), rows)
    assert torch.autograd.gradcheck(negative_pair_cosine, rows)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_pairs_that_have_met_get_a_finite_gradient(exponent):
    image = IMAGE.clone().requires_grad_()
    alignment(image, IMAGE.clone(), exponent).backward()
    assert image.grad.isfinite().all()


def test_both_forms_pull_along_the_same_line():
    found = []
    for objective in (Alignment(), Alignment(form="cosine")):
        encoded = Pairs()
        objective(encoded)["alignment"].backward()
        radial = (encoded.rows[0].grad * IMAGE).sum(1, keepdim=True) * IMAGE
        found.append(encoded.rows[0].grad - radial)  # what unit vectors can follow
    torch.testing.assert_close(found[0], 2 * found[1])


@pytest.mark.parametrize("form", ["distance", "cosine"])
@pytest.mark.parametrize("side", ["image", "text", None])
def test_the_side_that_is_detached_stays(form, side):
    encoded = Pairs()
    Alignment(form=form, detach=side)(encoded)["alignment"].backward()
    moved = {
        name for name, rows in zip(("image", "text"), encoded.rows, strict=True) if rows.grad is not None
    }
    assert moved == {"image", "text"} - {side}


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="no form 'cosin'") as caught:
        Alignment(form="cosin")
    assert "did you mean 'cosine'" in caught.value.hint
    with pytest.raises(ClipxError, match="detach='images'"):
        Alignment(detach="images")
    with pytest.raises(ClipxError, match="form=cosine has no exponent"):
        Alignment(form="cosine", exponent=2)
    for exponent in (0, -1, math.nan, math.inf):
        with pytest.raises(ClipxError, match=f"exponent={exponent} must be above 0"):
            Alignment(exponent=exponent)


def test_embeddings_that_become_one_are_warned_of_but_not_at_the_start():
    close = unit([[1, 0.01, 0], [1, 0, 0.01], [1, 0.01, 0.01]])
    objective = Alignment(form="cosine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            objective(Pairs(close, close))
        for _ in range(100):
            Alignment()(Pairs())
    with pytest.warns(UserWarning, match=r"mean cosine of 1\.00: the embeddings become one point"):
        objective(Pairs(close, close))
