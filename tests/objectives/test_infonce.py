import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import InfoNCE, info_nce


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def drawn(n, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(2, n, d, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("scale", "expected"), [(10.0, 0.042916), (1 / 0.07, 0.011518)])
def test_the_published_case(scale, expected):
    assert info_nce(IMAGE, TEXT, scale).item() == pytest.approx(expected, abs=5e-7)


def test_agrees_with_open_clip():
    from open_clip.loss import ClipLoss

    image, text = drawn(17)
    torch.testing.assert_close(info_nce(image, text, 14.0), ClipLoss()(image, text, torch.tensor(14.0)))


def test_gradients():
    image, text = (rows.requires_grad_() for rows in drawn(5, 4).unbind())
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(info_nce, (image, text, scale))


def test_soft_targets_are_cross_entropies_with_probabilities():
    image, text = drawn(6)
    targets = torch.softmax(5 * image @ image.T, dim=-1)
    logits = 4 * image @ text.T
    expected = (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(info_nce(image, text, 4.0, targets=targets), expected)
    one_hot = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(info_nce(image, text, 4.0, targets=one_hot), info_nce(image, text, 4.0))


def test_label_smoothing_mixes_in_the_uniform_distribution():
    image, text = drawn(6)
    mixed = 0.8 * torch.eye(6, dtype=torch.float64) + 0.2 / 6
    smoothed = info_nce(image, text, 4.0, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, info_nce(image, text, 4.0, targets=mixed))


def test_a_bias_changes_nothing_but_has_a_gradient():
    image, text = drawn(6)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    loss = info_nce(image, text, 4.0, logit_bias=bias)
    loss.backward()
    torch.testing.assert_close(loss.detach(), info_nce(image, text, 4.0))
    torch.testing.assert_close(bias.grad, torch.zeros_like(bias))


def test_own_rows_among_more_candidates():
    image, text = drawn(8)
    whole = info_nce(image, text, 4.0)
    parts = [
        info_nce(image[i : i + 4], text[i : i + 4], 4.0, all_image=image, all_text=text, offset=i)
        for i in (0, 4)
    ]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match="chunk_size is -1"):
        InfoNCE(chunk_size=-1)
    with pytest.raises(ClipxError, match="3 dimensions, text embeddings 2"):
        info_nce(IMAGE, TEXT[:, :2], 10.0)
    with pytest.raises(ClipxError, match="at least 2 pairs"):
        info_nce(IMAGE[:1], TEXT[:1], 10.0)
    with pytest.raises(ClipxError, match="wrong gradients"):
        InfoNCE(local_loss=True, gather_with_grad=False)


@pytest.mark.parametrize("case", [name for name in worlds.CASES if name.startswith("infonce")])
def test_processes_together_do_what_one_does_alone(processes, case):
    size = len(processes)
    towers = worlds.Towers(InfoNCE(label_smoothing=worlds.CASES[case]().label_smoothing))
    loss = towers(*worlds.pairs(size))
    loss.backward()
    alone = {"loss": loss.detach(), **worlds.gradients(towers)}
    # Without gradient the other processes' share of the towers' is missing, the scale's is whole.
    if case.startswith("infonce FF"):
        alone["image"], alone["text"] = alone["image"] / size, alone["text"] / size
    for found in processes:
        for name, value in alone.items():
            torch.testing.assert_close(
                found[case][name], value, rtol=1e-10, atol=1e-12, msg=f"{case}: {name}"
            )
