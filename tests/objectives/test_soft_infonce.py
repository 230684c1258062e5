import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.infonce import info_nce
from clipx.objectives.soft_infonce import SoftInfoNCE, soft_targets


def unit(rows):
    return functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


IMAGE = unit([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
TEXT = unit([[1, 0.2, 0], [0.1, 1, 0], [0.5, 1, 1]])


def softened(image, text, share, weights, scale=10.0):
    encoded = worlds.Batch(
        image=lambda: image, text=lambda: text, logit_scale=scale, logit_bias=None, progress=torch.tensor(0.5)
    )
    return SoftInfoNCE(2 * share, weights)(encoded)["soft_infonce"]


@pytest.mark.parametrize(
    ("share", "weights", "expected"),
    [(0.2, "uniform", 1.132522), (0.2, "similarity", 0.802675), (0.0, "similarity", 0.042916)],
)
def test_the_published_case_half_way_through_the_ramp(share, weights, expected):
    assert softened(IMAGE, TEXT, share, weights).item() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("weights", ["similarity", "uniform"])
def test_targets_are_distributions_of_each_direction(weights):
    torch.manual_seed(0)
    logits = 5 * torch.randn(3, 7, dtype=torch.float64)
    targets = soft_targets(logits, 0.3, weights, offset=2)
    torch.testing.assert_close(targets.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(targets.diagonal(2), torch.full((3,), 0.7, dtype=torch.float64))
    assert (targets >= 0).all()


def test_no_gradient_flows_through_the_targets():
    torch.manual_seed(0)
    image, text = functional.normalize(torch.randn(2, 4, 5, dtype=torch.float64), dim=-1)
    image.requires_grad_()
    (found,) = torch.autograd.grad(softened(image, text, 0.2, "similarity"), image)
    with torch.no_grad():
        logits = 10 * image @ text.T
        targets = soft_targets(logits, 0.2), soft_targets(logits.T, 0.2)
    (wanted,) = torch.autograd.grad(info_nce(image, text, 10.0, targets=targets), image)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(targets[0], targets[1].T)


def test_mistakes_are_named():
    with pytest.raises(ClipxError, match=r"share is 0\.6"):
        SoftInfoNCE(0.6)
    with pytest.raises(ClipxError, match="no weights 'similar'") as caught:
        SoftInfoNCE(weights="similar")
    assert "similarity" in caught.value.hint


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "soft infonce")
