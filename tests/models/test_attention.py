import copy

import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.models.attention import attended, embedded, vision_transformer
from clipx.models.loading import load


@pytest.fixture(scope="module")
def vit():
    """A tiny ViT whose class token does look somewhere: positions and queries of some size."""
    torch.manual_seed(0)
    clip = load("tiny-vit").eval().double()
    with torch.no_grad():
        clip.model.visual.positional_embedding.mul_(20)
        for block in clip.model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(3)
    return clip.model.visual


def images(count=2, side=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


@torch.no_grad()
def test_it_is_the_attention_of_torch_and_the_tower_goes_on_as_ever(vit):
    given, seen = images(), []
    handles = [
        block.register_forward_pre_hook(lambda block, args: seen.append((block, args[0])))
        for block in vit.transformer.resblocks
    ]
    found = attended(vit, given)
    for handle in handles:
        handle.remove()
    wanted = [
        block.attn(block.ln_1(x), block.ln_1(x), block.ln_1(x), average_attn_weights=False)[1][:, :, 0, 1:]
        for block, x in seen
    ]
    torch.testing.assert_close(found.attention, torch.stack(wanted))
    assert found.attention.std() > 1e-3  # it looks somewhere
    torch.testing.assert_close(vit._pool(found.hidden)[0] @ vit.proj, vit(given))
    torch.testing.assert_close(found.map().flatten(1), torch.stack(wanted).mean(0).mean(1))
    assert found.map().shape == (2, 8, 8)


@torch.no_grad()
def test_images_of_another_size_get_positions_in_between(vit):
    tokens, grid = embedded(vit, images(side=20))
    assert grid == (4, 4)
    assert tokens.shape == (2, 17, 128)
    flat = copy.deepcopy(vit)
    flat.positional_embedding[1:] = flat.positional_embedding[1]  # the same everywhere, so at any size
    flat.ln_pre = nn.Identity()
    small, _ = embedded(flat, images(side=20))
    torch.testing.assert_close(
        small[:, 1:] - flat.positional_embedding[1], flat.conv1(images(side=20)).flatten(2).transpose(1, 2)
    )


def test_other_towers_are_refused(micro_resnet, vit):
    with pytest.raises(ClipxError, match=r"masking needs a ViT of open_clip, that of .* is a Modified"):
        vision_transformer(micro_resnet, "masking")
    with pytest.raises(ClipxError, match="hold no patch"):
        embedded(vit, images(side=4))
    other = copy.deepcopy(vit)
    other.transformer.resblocks[1].attn = nn.Identity()
    with pytest.raises(ClipxError, match="attention of a Identity"):
        attended(other, images())
