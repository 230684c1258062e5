import math
from types import SimpleNamespace

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import one_sided_info_nce
from clipx.objectives.second_view import SecondView


def drawn(n, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return functional.normalize(rows, dim=-1).unbind()


def test_it_is_a_softmax_over_the_views():
    rows = torch.eye(2, dtype=torch.float64)
    views = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
    # The first has cosines 1 and 0.6 with the views, the second 0 and 0.8.
    expected = (math.log1p(math.exp(2 * (0.6 - 1))) + math.log1p(math.exp(2 * (0 - 0.8)))) / 2
    assert one_sided_info_nce(rows, views, 2.0).item() == pytest.approx(expected)
    parts = [
        one_sided_info_nce(rows[i : i + 1], views[i : i + 1], 2.0, candidates=views, offset=i).item()
        for i in range(2)
    ]
    assert sum(parts) / 2 == pytest.approx(expected)


def test_images_and_captions_count_alike():
    image, view = drawn(3)
    text, other = drawn(3, seed=1)
    fields = {"image": image, "image_view_1": view, "text": text, "text_view_1": other}
    encoded = SimpleNamespace(image=fields.get, text=fields.get, logit_scale=5.0)
    expected = (one_sided_info_nce(image, view, 5.0) + one_sided_info_nce(text, other, 5.0)) / 2
    torch.testing.assert_close(SecondView()(encoded), {"second_view": expected})


def test_gradients():
    rows, views = (each.requires_grad_() for each in drawn(4))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(one_sided_info_nce, (rows, views, scale))


def test_one_pair_is_none():
    row = torch.ones(1, 1)
    encoded = SimpleNamespace(image=lambda field: row, text=lambda field: row, logit_scale=5.0)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        SecondView()(encoded)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "second view")
