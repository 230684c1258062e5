import copy
from itertools import pairwise

import open_clip
import pytest
import torch

from clipx.errors import ClipxError
from clipx.models.surgery.shared_trunk import check_equal_weights, share_trunk


@pytest.fixture
def model(micro):
    return copy.deepcopy(micro.model)


def built(micro, vision=None, text=None):
    config = copy.deepcopy(micro.model_cfg)
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    return open_clip.model.CLIP(**config)


def features(model):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[5, 9, 1023] + [0] * 13, [8, 1023] + [0] * 14])
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


def test_both_towers_are_one_from_the_first_block_to_the_projection(model):
    before, texts = len(list(model.parameters())), features(model)[1]
    state = set(model.state_dict())
    share_trunk(model)
    assert model.visual.transformer is model.transformer
    assert model.visual.ln_post is model.ln_final
    assert model.visual.proj is model.text_projection
    # One layer of 12 tensors, a norm of 2, a projection of 1.
    assert before - len(list(model.parameters())) == 12 + 2 + 1
    assert set(model.state_dict()) == state
    torch.testing.assert_close(features(model)[1], texts)


def test_the_gradient_of_the_trunk_is_the_sum_over_both_modalities(model):
    other = copy.deepcopy(model)
    share_trunk(model)
    other.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    tokens = torch.randint(1, 1000, (2, 16))
    for each in (model, other):
        (each.encode_image(images) * each.encode_text(tokens)).sum().backward()
    shared = dict(model.transformer.named_parameters())
    apart = zip(other.visual.transformer.named_parameters(), other.transformer.parameters(), strict=True)
    for (name, one), two in apart:
        torch.testing.assert_close(shared[name].grad, one.grad + two.grad, msg=name)
    torch.testing.assert_close(
        model.text_projection.grad, other.visual.proj.grad + other.text_projection.grad
    )


def test_a_copy_shares_as_the_model_does(model):
    share_trunk(model)
    twin = copy.deepcopy(model)
    assert twin.visual.transformer is twin.transformer
    assert twin.transformer is not model.transformer


def test_a_part_alone(model):
    share_trunk(model, ["norm"])
    assert model.visual.ln_post is model.ln_final
    assert model.visual.transformer is not model.transformer


def test_the_weights_are_those_that_clip_starts_with(micro):
    # The image tower of open_clip starts its projections of attention as torch does, uniformly.
    model = built(micro, {"layers": 4, "width": 64}, {"layers": 4, "width": 64, "heads": 4})
    share_trunk(model, ["blocks"])
    found = [block.attn.out_proj.weight.std().item() for block in model.visual.transformer.resblocks]
    assert found == pytest.approx([64**-0.5 * 8**-0.5] * 4, rel=0.05)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (
            {"width": 64},
            {},
            "share their blocks: that of images has 1 of width 64 with 4 heads, that of texts 1",
        ),
        ({"layers": 2}, {}, "has 2 of width 32 with 2 heads"),
        ({"head_width": 32}, {}, "1 of width 32 with 1 heads, that of texts 1 of width 32 with 2 heads"),
        ({"ls_init_value": 0.1}, {}, "share their blocks"),
        ({}, {"mlp_ratio": 2.0}, "share their blocks"),
        ({}, {"no_causal_mask": True}, "a text tower that is not causal"),
    ],
)
def test_towers_that_differ_are_named(micro, vision, text, message):
    with pytest.raises(ClipxError, match=message):
        share_trunk(built(micro, vision, text))


def test_mistakes_are_named(model, micro_resnet):
    with pytest.raises(ClipxError, match="both are transformers of open_clip; this model has ModifiedResNet"):
        share_trunk(micro_resnet.model)
    with pytest.raises(ClipxError, match="no 'block' to share") as caught:
        share_trunk(model, ["block"])
    assert "blocks" in caught.value.hint
    with pytest.raises(ClipxError, match="shares nothing"):
        share_trunk(model, [])


def test_weights_that_were_trained_apart_are_not_thrown_away(model):
    with pytest.raises(ClipxError, match="sharing their blocks would lose"):
        check_equal_weights(model)
    with torch.no_grad():
        model.visual.transformer.load_state_dict(model.transformer.state_dict())
        model.visual.proj.copy_(model.text_projection)
    check_equal_weights(model)
    before = features(model)
    share_trunk(model)
    for one, two in pairwise((before, features(model))):
        torch.testing.assert_close(one, two)
