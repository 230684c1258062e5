import open_clip
import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.models.layers import distances_from_top, part_of
from clipx.models.surgery.shared_trunk import share_trunk

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "layers": 12, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8, "head_width": 16, "patch_size": None}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "image_size": 160}


def model(vision, custom=False):
    with torch.device("meta"):
        make = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
        return make(embed_dim=16, vision_cfg=dict(vision), text_cfg=dict(TEXT))


def test_a_vit_and_its_text_tower_count_from_the_top():
    found = distances_from_top(model(VIT))
    for name in ("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.bias"):
        assert found[f"visual.{name}"] == 13
    assert found["visual.transformer.resblocks.0.attn.in_proj_weight"] == 12
    assert found["visual.transformer.resblocks.11.ln_2.bias"] == 1
    assert found["visual.ln_post.weight"] == found["visual.proj"] == found["logit_scale"] == 0
    assert found["token_embedding.weight"] == found["positional_embedding"] == 4
    assert [found[f"transformer.resblocks.{block}.mlp.c_fc.weight"] for block in range(3)] == [3, 2, 1]
    assert found["ln_final.weight"] == found["text_projection"] == 0


def test_multipliers_are_those_of_the_paper():
    distances = distances_from_top(model(VIT))
    names = [
        "conv1.weight",
        "transformer.resblocks.0.ln_1.bias",
        "transformer.resblocks.11.ln_1.bias",
        "proj",
    ]
    found = [0.6 ** distances[f"visual.{name}"] for name in names]
    assert found == pytest.approx([0.00130607, 0.00217678, 0.6, 1.0], rel=1e-5)


def test_every_residual_block_of_a_resnet_is_a_layer():
    found = distances_from_top(model(RESNET))
    blocks = ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0"]
    assert [found[f"visual.{block}.conv1.weight"] for block in blocks] == [5, 4, 3, 2, 1]
    assert found["visual.conv3.weight"] == found["visual.bn1.bias"] == 6
    assert found["visual.attnpool.positional_embedding"] == 0


def test_towers_of_timm_and_separate_text_towers():
    clip = model(TIMM, custom=True)
    found = distances_from_top(clip)
    assert set(found) == {name for name, _ in clip.named_parameters()}
    depth = len(clip.visual.trunk.blocks)
    assert found["visual.trunk.patch_embed.proj.weight"] == depth + 1
    assert found["visual.trunk.blocks.0.attn.qkv.weight"] == depth
    assert found[f"visual.trunk.blocks.{depth - 1}.attn.qkv.weight"] == 1
    assert found["visual.head.proj.weight"] == 0
    assert found["text.token_embedding.weight"] == 4
    assert found["text.transformer.resblocks.2.ln_1.weight"] == 1


def test_a_text_tower_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    clip = model(VIT, custom=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=32, **sizes)
    with torch.device("meta"):
        clip.text = open_clip.hf_model.HFTextEncoder("bert", 8, config, "mean_pooler", "linear")
    found = distances_from_top(clip)
    assert found["text.transformer.embeddings.word_embeddings.weight"] == 3
    assert found["text.transformer.encoder.layer.0.output.dense.weight"] == 2
    assert found["text.transformer.encoder.layer.1.output.dense.weight"] == 1
    assert found["text.proj.weight"] == 0


def test_a_parameter_in_an_unknown_place_is_refused():
    clip = model(VIT)
    clip.visual.extra = nn.Linear(1, 1)
    with pytest.raises(ClipxError, match=r"'extra.weight'") as caught:
        distances_from_top(clip)
    assert "layer_decay=null" in caught.value.hint


def test_parts():
    names = ["visual.proj", "text.proj", "token_embedding.weight", "logit_scale", "logit_bias"]
    assert [part_of(name) for name in names] == ["image", "text", "text", "scale", "scale"]


def test_a_block_that_towers_share_is_as_deep_in_both():
    clip = model(VIT | {"width": 16, "layers": 3, "head_width": 8})
    apart = distances_from_top(clip)
    share_trunk(clip)
    assert distances_from_top(clip) == apart
