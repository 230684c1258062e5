import copy

import pytest
import torch
import worlds

from clipx.errors import ClipxError
from clipx.objectives.barlow import Barlow, redundancy
from clipx.training.module import TrainingModule

IMAGE = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)
TEXT = torch.tensor([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]], dtype=torch.float64)


def test_the_published_case():
    assert 0.025 * redundancy(IMAGE, TEXT).item() == pytest.approx(0.020209, abs=5e-7)


def test_columns_that_agree_and_know_nothing_of_each_other_cost_nothing():
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert redundancy(signs, signs).item() == 0
    # Columns exchanged: nothing on the diagonal, all beside it.
    assert redundancy(signs, signs.flip(1), off_diagonal=0.5).item() == pytest.approx(2 + 0.5 * 2)


def test_gradients():
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(redundancy, tuple(each.clone().requires_grad_() for each in given))


def test_fields_of_a_batch(micro):
    clip = copy.deepcopy(micro)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "text": clip.tokenize(["a", "b c", "d", "e f", "g", "h i"]),
    }
    own = Barlow(clip, [["image", "text"]], hidden=16, width=8)
    module = TrainingModule(clip, {"barlow": own}).train()
    found = module(batch)
    image = own.projectors["image"](clip.encode_image(clip.normalize(batch["image"]), normalize=False))
    text = own.projectors["text"](clip.encode_text(batch["text"], normalize=False))
    for view in (image, text):  # batch norm is the last that happens to them
        torch.testing.assert_close(view.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    correlation = image.T @ text / 6
    weights = torch.full((8, 8), 5e-3).fill_diagonal_(1.0)
    expected = (weights * (correlation - torch.eye(8)) ** 2).sum()
    torch.testing.assert_close(found["barlow"], expected, rtol=1e-4, atol=1e-5)
    found["loss"].backward()
    for parameter in (clip.model.visual.proj, clip.model.text_projection, own.projectors["text"][0].weight):
        assert parameter.grad.abs().sum() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(batch)["barlow"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.2, atol=0.2)


def test_heads_are_those_of_the_paper(micro):
    own = Barlow(micro)
    layers = [layer for layer in own.projectors["image"] if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [3000, 3000, 8192]
    assert own.projectors["image"][-1].weight is not None
    assert len(own.pairs) == 5
    assert own.needs == ("image", "text", "image_view_1", "text_view_1", "text_view_2", "image_view_2")


def test_mistakes_are_named(micro):
    with pytest.raises(ClipxError, match="no such field 'images'"):
        Barlow(micro, [["images", "text"]])
    with pytest.raises(ClipxError, match="a head of widths"):
        Barlow(micro, hidden=0)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "barlow")
