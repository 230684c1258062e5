import copy

import numpy as np
import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.inference.before_after import Head
from clipx.inference.fisher import diagonal_fisher, fisher_of
from clipx.inference.weight_curve import state_of
from clipx.models.locking import lock
from clipx.models.patches import patch_width
from clipx.objectives.cross_entropy import PatchHead


def taken(weight, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return diagonal_fisher({"w": weight}, (weight @ row for row in rows), generator=generator)["w"]


def test_of_two_equal_answers_it_is_a_quarter_of_the_inputs_square():
    # p = 1/2: the gradient of either answer is half the input, up to its sign.
    rows = torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, 1.0]], dtype=torch.float64)
    weight = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    expected = rows.square().mean(0) / 4
    torch.testing.assert_close(taken(weight, rows), torch.stack([expected, expected]))


def test_labels_are_drawn_from_the_model():
    # The variance of the gradient of a logit is p (1 - p); with the likeliest label it would be (1 - p)^2.
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64, requires_grad=True)
    share = float(weight.detach()[:, 0].softmax(0)[0])
    found = taken(weight, torch.ones(3000, 1, dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([share * (1 - share)] * 2, rel=0.08)
    assert (1 - share) ** 2 < 0.5 * share * (1 - share)
    assert torch.equal(found, taken(weight, torch.ones(3000, 1, dtype=torch.float64)))


def test_it_is_of_single_samples_not_of_their_mean():
    # Two inputs of opposite sign: the gradient of their mean could vanish.
    weight = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    assert taken(weight, rows).flatten().tolist() == pytest.approx([1.0, 1.0])


def test_what_no_answer_depends_on_is_missing_and_no_sample_is_an_error():
    weight, other = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    generator = torch.Generator()
    found = diagonal_fisher({"w": weight, "v": other}, [weight @ torch.ones(2)], generator=generator)
    assert list(found) == ["w"]
    with pytest.raises(ClipxError, match="no sample"):
        diagonal_fisher({"w": weight}, [], generator=generator)


class Noise:
    name, templates, classes = "noise", None, ["red", "green", "blue"]

    def __len__(self):
        return 9

    def examples(self, indices):
        return [
            {
                "image": np.random.default_rng(int(index)).integers(0, 256, (32, 32, 3), dtype=np.uint8),
                "captions": [],
                "label": int(index) % 3,
                "id": str(index),
            }
            for index in indices
        ]


def of(clip, head, **options):
    given = {"templates": ["a {}", "the {}"], "samples": 5, "workers": 0, **options}
    return fisher_of(clip, head, Noise(), **given)


def test_of_a_head_and_of_prompts_what_each_of_them_uses(micro):
    micro = copy.deepcopy(micro)
    head = Head(nn.Linear(micro.model.visual.output_dim, 3), Noise.classes)
    lock(micro, text=True, first_convolution=True)
    before, learnt = state_of(micro, head), [each.requires_grad for each in micro.parameters()]
    found = of(micro, head)
    assert {"head.weight", "head.bias", "clip.model.visual.conv1.weight"} <= found.keys() <= before.keys()
    assert "clip.model.token_embedding.weight" not in found
    assert all(value.shape == before[name].shape and value.min() >= 0 for name, value in found.items())
    prompts = of(micro, None)
    assert {"clip.model.token_embedding.weight", "clip.model.logit_scale"} <= prompts.keys()
    assert prompts["clip.model.visual.conv1.weight"].sum() > 0
    # Nothing is left behind: no gradient, no changed weight, what was locked is locked.
    assert [each.requires_grad for each in micro.parameters()] == learnt
    assert all(each.grad is None for each in micro.parameters())
    assert all(torch.equal(value, before[name]) for name, value in state_of(micro, head).items())


def test_more_samples_are_others_and_the_same_seed_is_the_same(micro):
    one, again, more = of(micro, None), of(micro, None), of(micro, None, samples=9)
    name = "clip.model.visual.proj"
    assert torch.equal(one[name], again[name])
    assert not torch.equal(one[name], more[name])


def test_of_a_head_on_patches_the_projection_answers_nothing(micro):
    head = Head(PatchHead(patch_width(micro), 3), Noise.classes, pool="patches")
    found = of(micro, head)
    assert {"head.gain", "head.shift", "head.linear.weight", "clip.model.visual.conv1.weight"} <= found.keys()
    assert "clip.model.visual.proj" not in found
