import math

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.siglip import SigLIP, sigmoid_loss


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def drawn(n, d=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(2, n, d, generator=generator, dtype=dtype), dim=-1)


@pytest.mark.parametrize("chunk_size", [0, 1, 2, 3, 7])
def test_the_published_case(chunk_size):
    loss = sigmoid_loss(IMAGE, TEXT, 10.0, -10.0, chunk_size=chunk_size)
    assert loss.item() == pytest.approx(0.838064, abs=5e-7)
    loss = sigmoid_loss(IMAGE, TEXT, 10.0, -10.0, chunk_size=chunk_size, negative_only=True)
    assert loss.item() == pytest.approx(0.630958, abs=5e-7)


def test_agrees_with_open_clip():
    from open_clip.loss import SigLipLoss

    image, text = drawn(17)
    expected = SigLipLoss()(image, text, torch.tensor(14.0), torch.tensor(-3.0))
    torch.testing.assert_close(sigmoid_loss(image, text, 14.0, -3.0), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("negative_only", [False, True])
@pytest.mark.parametrize("chunk_size", [0, 2])
def test_gradients(negative_only, chunk_size):
    image, text = (rows.requires_grad_() for rows in drawn(5, 4).unbind())
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    def loss(*inputs):
        return sigmoid_loss(*inputs, negative_only=negative_only, chunk_size=chunk_size)

    assert torch.autograd.gradcheck(loss, (image, text, scale, bias))


def test_texts_of_another_process_may_be_more_or_fewer():
    image, text = drawn(6)
    whole = sigmoid_loss(image, text, 5.0, -1.0, negative_only=True)
    halves = sum(sigmoid_loss(image, part, 5.0, -1.0, negative_only=True) for part in text.split(4))
    torch.testing.assert_close(whole, halves)


def test_half_precision_rows_are_scored_in_float32():
    image, text = drawn(32)
    image, text = image.bfloat16(), text.bfloat16()
    loss = sigmoid_loss(image, text, 100.0, -10.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), sigmoid_loss(image.double(), text.double(), 100.0, -10.0))


def test_extreme_logits_stay_finite():
    image, text = (rows.requires_grad_() for rows in drawn(4, dtype=torch.float32).unbind())
    loss = sigmoid_loss(image, text, 1e4, -1e4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(image.grad).all()


def test_the_bias_spares_the_first_step():
    image, text = drawn(64, 256)
    without = sigmoid_loss(image, text, 1e-6, 0.0)
    assert without.item() == pytest.approx(64 * math.log(2), rel=1e-4)
    # N softplus(-10) for the pairs that do not match, 10 for the one that does.
    assert sigmoid_loss(image, text, 1e-6, -10.0).item() == pytest.approx(10.0, abs=0.01)


def test_without_the_bias_training_starts_worse():
    def after_steps(bias):
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(16, 8, generator=generator).requires_grad_()
        text = torch.randn(16, 8, generator=generator).requires_grad_()
        t = torch.tensor(math.log(10)).requires_grad_()
        b = torch.tensor(bias).requires_grad_()
        optimizer = torch.optim.Adam([image, text, t, b], lr=0.01)
        losses = []
        for _ in range(20):
            rows = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
            loss = sigmoid_loss(*rows, t.exp(), b)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    without, with_bias = after_steps(0.0), after_steps(-10.0)
    assert without[0] > 16 * math.log(2)
    assert with_bias[-1] < without[-1]


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="chunk_size is -1"):
        sigmoid_loss(IMAGE, TEXT, 10.0, -10.0, chunk_size=-1)
    with pytest.raises(ClipxError, match="chunk_size is -1"):
        SigLIP(chunk_size=-1)
    with pytest.raises(ClipxError, match="3 dimensions, text embeddings 2"):
        sigmoid_loss(IMAGE, TEXT[:, :2], 10.0, -10.0)
    with pytest.raises(ClipxError, match="3 images and 2 texts"):
        sigmoid_loss(IMAGE, TEXT[:2], 10.0, -10.0)
    with pytest.raises(ClipxError, match="unknown dist_impl 'ring'") as caught:
        SigLIP(dist_impl="ring")
    assert "bidir" in caught.value.hint


def test_a_missing_bias_warns_and_counts_as_zero():
    with pytest.warns(UserWarning, match="init_logit_bias=-10"):
        loss = sigmoid_loss(IMAGE, TEXT, 10.0, None)
    torch.testing.assert_close(loss, sigmoid_loss(IMAGE, TEXT, 10.0, 0.0))


@pytest.mark.parametrize("case", [name for name in worlds.CASES if name.startswith("siglip")])
def test_processes_together_do_what_one_does_alone(processes, case):
    towers = worlds.Towers(worlds.CASES[case]())
    loss = towers(*worlds.pairs(len(processes)))
    loss.backward()
    alone = {"loss": loss.detach(), **worlds.gradients(towers)}
    for found in processes:
        for name, value in alone.items():
            torch.testing.assert_close(
                found[case][name], value, rtol=1e-10, atol=1e-12, msg=f"{case}: {name}"
            )
