import copy

import open_clip
import pytest
import torch
from torch import nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.patches import (
    embed_with_patches,
    features_and_patch_mean,
    lock_pooling,
    patch_mean,
    patch_width,
)


@pytest.fixture(scope="module")
def timm_vit(micro):
    own = copy.deepcopy(micro)
    torch.manual_seed(0)
    own.model.visual = open_clip.timm_model.TimmModel("test_vit", 32, image_size=32, pool="token")
    own.preprocess_cfg = own.preprocess_cfg | {"size": own.model.visual.trunk.default_cfg["input_size"][1:]}
    return own.eval()


@pytest.fixture(scope="module")
def timm_resnet(micro):
    own = copy.deepcopy(micro)
    torch.manual_seed(0)
    own.model.visual = open_clip.timm_model.TimmModel("resnet10t", 32, image_size=32)
    return own.eval()


TOWERS = ("micro", "micro_resnet", "timm_vit", "timm_resnet")


def images(clip: CLIP, count: int = 2):
    size = clip.preprocess_cfg["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tower", TOWERS)
def test_the_embedding_is_that_of_the_tower(tower, request):
    clip = request.getfixturevalue(tower)
    given = images(clip)
    with torch.no_grad():
        pooled, patches = embed_with_patches(clip, given)
        torch.testing.assert_close(pooled, clip.encode_image(given, normalize=False))
    assert patches.ndim == 3
    assert patches.shape[-1] == patch_width(clip)


@pytest.mark.parametrize("tower", ["micro", "timm_vit"])
def test_a_vit_gives_its_last_block_without_the_class_token(tower, request):
    clip = request.getfixturevalue(tower)
    visual, seen = clip.model.visual, []
    last = visual.transformer.resblocks[-1] if tower == "micro" else visual.trunk.blocks[-1]
    handle = last.register_forward_hook(lambda module, given, found: seen.append(found))
    with torch.no_grad():
        _, patches = embed_with_patches(clip, images(clip))
    handle.remove()
    assert seen[0].shape[1] == patches.shape[1] + 1
    torch.testing.assert_close(patches, seen[0][:, 1:])


def test_a_resnet_gives_the_positions_of_its_last_map(micro_resnet):
    seen = []
    handle = micro_resnet.model.visual.layer4.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        _, patches = embed_with_patches(micro_resnet, images(micro_resnet))
    handle.remove()
    torch.testing.assert_close(patches[:, 0], seen[0][:, :, 0, 0])
    assert patches.shape[1] == seen[0].shape[2] * seen[0].shape[3]


def test_norm_then_mean_is_mean_of_normalised_then_gain_and_bias():
    torch.manual_seed(0)
    patches, norm = torch.randn(3, 5, 8, dtype=torch.float64), nn.LayerNorm(8, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    torch.testing.assert_close(norm(patches).mean(1), patch_mean(patches) * norm.weight + norm.bias)
    half = patches.half()
    assert patch_mean(half).dtype == torch.float32


def test_features_for_use_have_no_gradient_and_both_rows(micro):
    raw = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    unit, mean = features_and_patch_mean(micro, raw)
    assert not unit.requires_grad
    assert not mean.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(unit, micro.encode_image(micro.normalize(raw)))
        _, patches = embed_with_patches(micro, micro.normalize(raw))
    torch.testing.assert_close(mean, functional.layer_norm(patches, patches.shape[-1:]).mean(1))


@pytest.mark.parametrize(
    ("tower", "after"),
    [
        ("micro", {"ln_post.weight", "ln_post.bias", "proj"}),
        ("timm_vit", {"trunk.norm.weight", "trunk.norm.bias", "head.proj.weight"}),
        ("timm_resnet", {"head.proj.weight"}),
    ],
)
def test_what_comes_after_the_patches_is_locked_and_no_more(tower, after, request):
    clip = copy.deepcopy(request.getfixturevalue(tower))
    kept = {name: value.clone() for name, value in clip.state_dict().items()}
    lock_pooling(clip.train())
    visual = clip.model.visual
    assert {name for name, value in visual.named_parameters() if not value.requires_grad} == after
    assert all(torch.equal(value, kept[name]) for name, value in clip.state_dict().items())
    assert clip.training


def test_the_attention_pool_of_a_resnet_is_locked(micro_resnet):
    clip = lock_pooling(copy.deepcopy(micro_resnet))
    for name, value in clip.model.visual.named_parameters():
        assert value.requires_grad != name.startswith("attnpool"), name


def test_a_locked_tower_can_be_locked_again(micro):
    clip = copy.deepcopy(micro)
    clip.model.visual.requires_grad_(False)
    lock_pooling(clip)
    assert not any(value.requires_grad for value in clip.model.visual.parameters())


def test_a_tower_that_hides_its_patches_is_refused(micro):
    clip = copy.deepcopy(micro)
    clip.model.visual = nn.Sequential(nn.Flatten(), nn.Linear(3072, 32))
    with pytest.raises(ClipxError, match="a Sequential, does not show its patches") as caught:
        patch_width(clip)
    assert "pool=embedding" in caught.value.hint
