import copy

import pytest
import timm
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn
from transformers import BertConfig, BertModel

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.models.surgery.split_qkv import SplitAttention, SplitPool, attention_maps, fuse_qkv, split_qkv


def attention(**given):
    torch.manual_seed(0)
    found = nn.MultiheadAttention(**{"embed_dim": 12, "num_heads": 3, "batch_first": True, **given}).double()
    for parameter in found.parameters():
        nn.init.normal_(parameter)  # biases begin at zero, where an error would not show
    return found.eval()


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CAUSAL = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "mask",
    [None, CAUSAL, CAUSAL.bool(), CAUSAL.expand(6, 5, 5)],
    ids=["open", "causal", "boolean", "of every head"],
)
def test_split_attention_is_the_fused_one(batch_first, bias, mask):
    fused = attention(batch_first=batch_first, bias=bias)
    x = rows(2, 5, 12) if batch_first else rows(5, 2, 12)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    if mask is not None and mask.is_floating_point():  # torch wants both of one kind
        padding = torch.zeros(2, 5, dtype=torch.float64).masked_fill(padding, float("-inf"))
    split = SplitAttention(fused)
    for given in ({}, {"key_padding_mask": padding}):
        expected = fused(x, x, x, need_weights=False, attn_mask=mask, **given)[0]
        torch.testing.assert_close(split(x, x, x, attn_mask=mask, **given)[0], expected)
    again = split.fuse()
    for name, value in fused.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert list(again.state_dict()) == list(fused.state_dict())
    torch.testing.assert_close(again(x, x, x, attn_mask=mask)[0], fused(x, x, x, attn_mask=mask)[0])


def test_keys_of_another_width_keep_their_own_weights():
    fused = attention(kdim=7, vdim=7)
    query, context = rows(2, 5, 12), rows(2, 4, 7)
    split = SplitAttention(fused)
    torch.testing.assert_close(split(query, context, context)[0], fused(query, context, context)[0])
    again = split.fuse()
    assert list(again.state_dict()) == list(fused.state_dict())
    torch.testing.assert_close(again(query, context, context)[0], fused(query, context, context)[0])


def test_a_change_of_q_is_a_change_of_its_rows_alone():
    fused = attention()
    split = SplitAttention(fused)
    with torch.no_grad():
        split.q.weight.mul_(2)
        fused.in_proj_weight[:12].mul_(2)
    x = rows(2, 5, 12)
    torch.testing.assert_close(split(x, x, x)[0], fused(x, x, x)[0])


def test_what_cannot_be_split_is_said():
    with pytest.raises(ClipxError, match="add_bias_kv"):
        SplitAttention(attention(add_bias_kv=True))
    x = rows(2, 5, 12)
    with pytest.raises(ValueError, match="no weights"):
        SplitAttention(attention())(x, x, x, need_weights=True)


def test_the_pool_of_a_resnet():
    torch.manual_seed(0)
    fused = nn.Sequential(AttentionPool2d(3, 16, 2, 8)).double().eval()
    pool = copy.deepcopy(fused)
    split_qkv(pool)
    x = rows(2, 16, 3, 3)
    torch.testing.assert_close(pool(x), fused(x))
    assert set(attention_maps(pool[0])) == set("qkvo")
    calls = []
    pool[0].v_proj.register_forward_hook(lambda *_: calls.append(1))
    pool(x)
    assert calls
    fuse_qkv(pool)
    assert type(pool[0]) is AttentionPool2d


def timm_tower(name, **given):
    torch.manual_seed(0)
    return timm.create_model(name, depth=2, embed_dim=16, num_heads=2, num_classes=0, img_size=32, **given)


TOWERS = {
    "vit": lambda: timm_tower("vit_tiny_patch16_224"),
    "map pool": lambda: timm_tower("vit_tiny_patch16_224", global_pool="map", class_token=False),
    "normed": lambda: timm_tower("vit_tiny_patch16_224", qk_norm=True),
    "eva": lambda: timm_tower("eva02_tiny_patch14_224", patch_size=16, qkv_fused=True),
    "beit": lambda: timm_tower("beit_base_patch16_224"),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        depths=(1, 1),
        embed_dim=8,
        num_heads=(1, 2),
        img_size=56,
        num_classes=0,
    ),
}


def perturbed(tower):
    torch.manual_seed(1)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    return tower.double().eval()


@pytest.mark.parametrize("kind", TOWERS)
def test_towers_of_timm(kind):
    fused = perturbed(TOWERS[kind]())
    tower = copy.deepcopy(fused)
    split_qkv(tower)
    maps = [found for module in tower.modules() if (found := attention_maps(module))]
    assert len(maps) == 2 + (kind == "map pool")
    assert all(set(found) == set("qkvo") for found in maps)
    size = 56 if kind == "swin" else 32
    x = rows(2, 3, size, size)
    torch.testing.assert_close(tower(x), fused(x))
    # Each is called, so that what is added to it counts.
    called = []
    for found in maps:
        for owner, name in found.values():
            getattr(owner, name).register_forward_hook(lambda module, *_: called.append(id(module)))
    tower(x)
    assert len(set(called)) == 4 * len(maps)
    fuse_qkv(tower)
    assert list(tower.state_dict()) == list(fused.state_dict())
    assert all(torch.equal(tower.state_dict()[name], value) for name, value in fused.state_dict().items())
    assert torch.equal(tower(x), fused(x))


def test_interleaved_rows_are_not_taken_for_q_k_v():
    tower = timm.create_model("maxvit_rmlp_pico_rw_256", img_size=64, num_classes=0)
    before = list(tower.state_dict())
    split_qkv(tower)
    assert list(tower.state_dict()) == before


def test_bert_has_layers_of_its_own():
    config = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    bert = BertModel(BertConfig(**config, vocab_size=50))
    before = list(bert.state_dict())
    split_qkv(bert)
    assert list(bert.state_dict()) == before
    maps = attention_maps(bert.encoder.layer[0].attention)
    assert {name: getattr(*place) for name, place in maps.items()} == {
        "q": bert.encoder.layer[0].attention.self.query,
        "k": bert.encoder.layer[0].attention.self.key,
        "v": bert.encoder.layer[0].attention.self.value,
        "o": bert.encoder.layer[0].attention.output.dense,
    }
    assert not attention_maps(bert.encoder.layer[0])


@pytest.mark.parametrize("name", ["micro", "tiny"])
def test_whole_models_come_back_bit_for_bit(name):
    torch.manual_seed(0)
    clip = load(name, "tiny" if name == "tiny" else None).eval()
    own = copy.deepcopy(clip)
    split_qkv(own.model)
    kinds = {type(module) for module in own.modules()}
    assert SplitAttention in kinds
    assert nn.MultiheadAttention not in kinds
    assert (SplitPool in kinds) == (name == "tiny")
    images = torch.randn(3, 3, clip.image_size, clip.image_size)
    tokens = clip.tokenize(["a red circle", "a blue star beside a green ring", ""])
    with torch.no_grad():
        torch.testing.assert_close(own.encode_image(images), clip.encode_image(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.encode_text(tokens), clip.encode_text(tokens), atol=1e-5, rtol=0)
        # The causal mask is still there: what follows the end of a text has no way into it.
        end = int(tokens[0].argmax())
        changed = tokens.clone()
        changed[0, end + 1 :] = 7
        torch.testing.assert_close(own.encode_text(changed)[0], own.encode_text(tokens)[0])
    fuse_qkv(own.model)
    assert own.fingerprint() == clip.fingerprint()
    assert list(own.state_dict()) == list(clip.state_dict())
