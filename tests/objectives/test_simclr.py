import pytest
import torch

from clipx.errors import ClipxError
from clipx.objectives.simclr import nt_xent

IMAGE = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
TEXT = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64)


def test_the_published_case():
    assert nt_xent(IMAGE, TEXT, 0.1).item() == pytest.approx(0.075508, abs=5e-7)
    # What the released code of A-CLIP computes: views of themselves.
    assert nt_xent(IMAGE, IMAGE, 0.1).item() == pytest.approx(0.038175, abs=5e-7)


def test_it_is_the_equation_over_all_views():
    torch.manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(10, 4, dtype=torch.float64), dim=-1)
    scores = (views @ views.T / 0.3).exp().fill_diagonal_(0)
    pairs = torch.arange(10).roll(5)
    wanted = -(scores[torch.arange(10), pairs] / scores.sum(1)).log().mean()
    torch.testing.assert_close(nt_xent(views[:5], views[5:], 0.3), wanted)


def test_own_views_among_those_of_others():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    parts = [
        nt_xent(first[i : i + 3], second[i : i + 3], all_first=first, all_second=second, offset=i)
        for i in (0, 3)
    ]
    torch.testing.assert_close(sum(parts) / 2, nt_xent(first, second))


def test_gradients():
    views = [rows.clone().requires_grad_() for rows in (IMAGE, TEXT)]
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), views)


def test_one_image_is_refused():
    with pytest.raises(ClipxError, match="at least 2 images"):
        nt_xent(IMAGE[:1], TEXT[:1])
