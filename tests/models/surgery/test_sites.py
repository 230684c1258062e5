import copy

import open_clip
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.surgery.lora import add_lora
from clipx.models.surgery.sites import check_selection, convolutional, find_sites, positions, restore
from clipx.models.surgery.svd import train_singular_values


@pytest.fixture(scope="module")
def large():
    """ViT-B/16 without weights: shapes are all that is asked for."""
    config = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    return CLIP(model, str.split, config, {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3}, "ViT-B-16")


def counted(changes):
    return sum(
        parameter.numel() for change in changes.values() for parameter in change.parameters(recurse=False)
    )


def test_the_published_numbers_of_parameters(large):
    assert counted(add_lora(copy.deepcopy(large), rank=2)) == 184_320
    values = {
        name: min(site.layer.weight.shape)
        for name, site in find_sites(
            copy.deepcopy(large), targets=["q", "k", "v", "o", "mlp"], blocks="all"
        ).items()
    }
    assert sum(values.values()) == 92_160
    attention = [number for name, number in values.items() if ".mlp." not in name]
    assert sum(attention) == 61_440
    assert len(values) == 2 * 12 * 6
    assert {name for name in values if name.startswith("text.11.")} == {
        f"text.11.{role}" for role in ("q.0", "k.0", "v.0", "o.0", "mlp.0", "mlp.1")
    }


@pytest.mark.parametrize(
    ("word", "depth", "expected"),
    [
        # the tables of the published code, for 12 and 24 layers
        ("bottom", 12, range(0, 4)),
        ("mid", 12, range(4, 8)),
        ("up", 12, range(8, 12)),
        ("half-bottom", 12, range(0, 6)),
        ("half-up", 12, range(6, 12)),
        ("top3", 12, range(9, 12)),
        ("half-up", 24, range(12, 24)),
        ("half-bottom", 24, range(0, 12)),
        ("all", 5, range(5)),
        ("top3", 2, range(2)),
        ("mid", 4, range(1, 2)),
        ([3, 0, 3], 4, [0, 3]),
    ],
)
def test_positions_follow_from_the_depth(word, depth, expected):
    assert positions(word, depth) == list(expected)


def test_thirds_and_halves_cover_a_tower_once():
    for depth in range(1, 30):
        for words in (("bottom", "mid", "up"), ("half-bottom", "half-up")):
            assert [number for word in words for number in positions(word, depth)] == list(range(depth))


def test_a_resnet_has_bottlenecks_and_its_pool(micro_resnet):
    own = copy.deepcopy(micro_resnet)
    assert convolutional(own)
    sites = find_sites(own, towers=["image"], targets=["q", "o", "conv"])
    names = list(sites)
    assert set(names[-2:]) == {"image.4.q.0", "image.4.o.0"}
    # A bottleneck has three convolutions and one on the way around it; the stem is no block.
    assert [name for name in names if name.startswith("image.0.")] == [f"image.0.conv.{n}" for n in range(4)]
    assert sites["image.0.conv.0"].layer is own.model.visual.layer1[0].conv1
    assert find_sites(copy.deepcopy(micro_resnet), targets=["v"], blocks="top1").keys() == {
        "image.4.v.0",
        "text.0.v.0",
    }


def test_a_timm_tower_with_a_pool_and_a_bert(micro):
    own = copy.deepcopy(micro)
    config = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 24}
    own.model.text = BertModel(BertConfig(**config, vocab_size=50))
    own.model.visual = open_clip.timm_model.TimmModel(
        "vit_tiny_patch16_224", 32, image_size=32, pool="map", proj="none"
    )
    sites = find_sites(own, targets=["q", "k", "v", "o", "mlp"])
    roles = ("q.0", "k.0", "v.0", "o.0", "mlp.0", "mlp.1")
    assert sites.keys() == {
        *(f"image.{block}.{role}" for block in range(13) for role in roles),  # the pool is the last
        *(f"text.{block}.{role}" for block in range(3) for role in roles),
    }
    layer = own.model.text.encoder.layer[1]
    assert sites["text.1.o.0"].layer is layer.attention.output.dense
    assert [sites[f"text.1.mlp.{n}"].layer for n in range(2)] == [
        layer.intermediate.dense,
        layer.output.dense,
    ]
    assert sites["image.12.q.0"].layer is own.model.visual.trunk.attn_pool.q
    assert sites["image.0.k.0"].layer is own.model.visual.trunk.blocks[0].attn.qkv.k


def test_a_text_tower_of_its_own_and_a_pool_of_queries():
    config = open_clip.get_model_config("coca_ViT-B-32")
    with torch.device("meta"):
        model = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
    own = CLIP(model, str.split, config, {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3}, "coca")
    before = list(own.state_dict())
    sites = find_sites(own, targets=["q"])
    expected = [f"image.{block}.q.0" for block in range(13)] + [f"text.{block}.q.0" for block in range(12)]
    assert list(sites) == expected
    assert sites["image.12.q.0"].owner is own.model.visual.attn_pool.attn
    assert sites["text.0.q.0"].owner is own.model.text.transformer.resblocks[0].attn
    assert list(restore(own).state_dict()) == before


@pytest.mark.parametrize("change", [add_lora, train_singular_values])
def test_what_is_put_in_and_taken_out_is_what_was_there(micro, change):
    own = copy.deepcopy(micro)
    changes = change(own)
    assert len(changes) > 5
    assert all(not change.training for change in changes.values())
    images, tokens = torch.randn(2, 3, 32, 32), own.tokenize(["a red circle", "two"])
    with torch.no_grad():
        torch.testing.assert_close(own.encode_image(images), micro.encode_image(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(own.encode_text(tokens), micro.encode_text(tokens), atol=1e-5, rtol=0)
    assert restore(own) is own
    assert own.fingerprint() == micro.fingerprint()
    assert restore(own).fingerprint() == micro.fingerprint()  # again changes nothing


@pytest.mark.parametrize("change", [add_lora, train_singular_values])
@pytest.mark.parametrize("name", ["micro", "micro_resnet"])
def test_merged_weights_do_what_the_changes_did(name, change, tmp_path, request):
    own = copy.deepcopy(request.getfixturevalue(name))
    targets = ["q", "k", "v", "o", "mlp"] + ["conv"] * (name == "micro_resnet")
    changes = change(own, targets=targets)
    torch.manual_seed(0)
    images, tokens = torch.randn(4, 3, 32, 32), own.tokenize(["a red circle", "two"])
    with torch.no_grad():
        before = own.encode_image(images), own.encode_text(tokens)
        for module in changes.values():
            for parameter in module.parameters(recurse=False):
                parameter.add_(0.1 * torch.randn_like(parameter))
        changed = own.encode_image(images), own.encode_text(tokens)
        restore(own)
        merged = own.encode_image(images), own.encode_text(tokens)
    for tower in range(2):
        assert float((changed[tower] - before[tower]).abs().max()) > 1e-3
        torch.testing.assert_close(merged[tower], changed[tower], atol=2e-5, rtol=0)
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{own.save(tmp_path / 'model')}")
    with torch.no_grad():
        theirs = model.eval().encode_image(images, normalize=True)
        torch.testing.assert_close(theirs, merged[0], atol=1e-6, rtol=0)
        theirs = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(theirs, merged[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"towers": ["images"]}, "towers has 'images'"),
        ({"towers": []}, r"towers is \[\], must be a list"),
        ({"targets": "qkv"}, "targets is 'qkv', must be a list"),
        ({"targets": ["q", "query"]}, "targets has 'query'"),
        ({"blocks": "top"}, "blocks is 'top'"),
        ({"blocks": []}, "must be numbers"),
        ({"blocks": [-1]}, "must be numbers"),
        ({"blocks": ["up"]}, "must be numbers"),
    ],
)
def test_words_that_mean_nothing_are_named(given, message):
    chosen = {"towers": ["image"], "targets": ["q"], "blocks": "all", **given}
    with pytest.raises(ClipxError, match=message):
        check_selection(**chosen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"blocks": [0, 7]}, "the image tower: there is no block 7"),
        ({"blocks": [1], "towers": ["text"]}, "the text tower: there is no block 1"),
        ({"targets": ["conv"]}, "the text tower of micro-resnet .* has no conv"),
        ({"targets": ["mlp"]}, r"the image tower of micro-resnet \(ModifiedResNet\) has no mlp"),
        ({"blocks": "bottom"}, "the image tower of micro-resnet .* has no q or k or v"),
    ],
)
def test_layers_that_do_not_exist_are_named(micro_resnet, given, message):
    with pytest.raises(ClipxError, match=message):
        find_sites(copy.deepcopy(micro_resnet), **given)


def test_a_tower_without_attention_is_named(micro):
    own = copy.deepcopy(micro)
    own.model.visual = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ClipxError, match="the image tower of micro") as caught:
        find_sites(own)
    assert "towers=[text]" in caught.value.hint
