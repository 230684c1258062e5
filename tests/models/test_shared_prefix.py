"""A common beginning that is read once gives the features, and the gradients, of whole texts."""

import open_clip
import pytest
import torch

from clipx.models.loading import load
from clipx.models.shared_prefix import can_share, encode_shared
from clipx.models.text import causal_tower, encode_embeddings

VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 600, "width": 32, "heads": 2, "layers": 3}


def built_in():
    return causal_tower(load("tiny").eval().double().model)


def custom(**changes):
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(16, VISION, {**TEXT, **changes}).eval().double()
    return causal_tower(model)


def texts(tower, groups, classes, shared, length):
    """Random embeddings ``[G, C, L, W]`` of texts that begin alike, and tokens that end them."""
    generator = torch.Generator().manual_seed(0)
    width, end = tower.token_embedding.weight.shape[1], tower.token_embedding.num_embeddings - 1
    drawn = torch.randn(groups, classes, length, width, generator=generator, dtype=torch.float64)
    drawn[:, :, :shared] = drawn[:, :1, :shared]
    tokens = torch.ones(classes, length, dtype=torch.int64)
    for row in range(classes):
        tokens[row, length - 1 - row % (length - shared) :] = 0
        tokens[row, length - 1 - row % (length - shared)] = end
    return drawn, tokens


@pytest.mark.parametrize(
    "build",
    [
        built_in,
        custom,
        lambda: custom(layers=1),
        lambda: custom(ls_init_value=0.3),
        lambda: custom(pool_type="eos", eos_id=599, proj_bias=True),
    ],
)
@pytest.mark.parametrize(
    ("groups", "classes", "shared", "length"), [(1, 5, 4, 9), (3, 2, 1, 6), (2, 1, 5, 6)]
)
def test_features_and_gradients_are_those_of_whole_texts(build, groups, classes, shared, length):
    tower = build()
    assert can_share(tower)
    drawn, tokens = texts(tower, groups, classes, shared, length)
    whole = drawn.clone().requires_grad_()
    expected = encode_embeddings(tower, whole.flatten(0, 1), tokens.repeat(groups, 1))
    expected = expected.unflatten(0, (groups, classes))
    head, tail = drawn[:, 0, :shared].clone().requires_grad_(), drawn[:, :, shared:].clone().requires_grad_()
    found = encode_shared(tower, head, tail, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(head.grad, whole.grad[:, :, :shared].sum(1), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tail.grad, whole.grad[:, :, shared:], rtol=1e-9, atol=1e-11)


def test_other_blocks_are_left_alone():
    assert not can_share(custom(scale_heads=True))
    tower = custom()
    tower.transformer.resblocks[1].attn = torch.nn.Identity()
    assert not can_share(tower)
