import json
import pickle
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipx.errors import ClipxError
from clipx.models.clip import CONFIG_FILE, WEIGHTS_FILE
from clipx.models.loading import load, preset_names


@pytest.fixture(scope="module")
def saved(micro, tmp_path_factory):
    return micro.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that refuses the connection, and nothing cached."""
    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def same_weights(clip, other):
    ours, theirs = clip.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def positions(clip):
    visual = clip.model.visual
    return getattr(visual, "attnpool", visual).positional_embedding.detach()


def rewritten(folder, target, change):
    """A copy of a model folder with another configuration."""
    shutil.copytree(folder, target)
    config = json.loads((target / CONFIG_FILE).read_text())
    change(config)
    (target / CONFIG_FILE).write_text(json.dumps(config))
    return target


def test_presets_are_small_and_complete():
    assert preset_names() == ["micro", "tiny", "tiny-vit"]
    for name in ("tiny", "tiny-vit"):
        clip = load(name)
        assert sum(parameter.numel() for parameter in clip.parameters()) < 5e6
        assert clip.image_size == 40
        assert clip.tokenize(["a red circle"]).shape == (1, 32)


def test_the_towers_of_the_tiny_vit_are_alike():
    model = load("tiny-vit").model
    assert model.visual.grid_size == (8, 8)
    shapes = [
        {name: value.shape for name, value in tower.state_dict().items()}
        for tower in (model.visual.transformer, model.transformer)
    ]
    assert shapes[0] == shapes[1]


def test_random_weights_follow_the_seed():
    torch.manual_seed(1)
    first = load("micro")
    torch.manual_seed(1)
    assert same_weights(load("micro"), first)
    assert not same_weights(load("micro"), first)


def test_a_model_folder_a_run_and_a_prefix_name_the_same_model(micro, saved):
    for name in (str(saved), str(saved.parent), f"local-dir:{saved}"):
        assert same_weights(load(name), micro)
    for pretrained in (str(saved), str(saved.parent), str(saved / WEIGHTS_FILE)):
        assert same_weights(load("micro", pretrained), micro)


def test_checkpoint_files(micro, tmp_path):
    weights = micro.model.state_dict()
    torch.save(weights, tmp_path / "plain.pt")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "epoch.pt"
    )
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("plain.pt", "epoch.pt", "weights.safetensors"):
        assert same_weights(load("micro", str(tmp_path / name)), micro)


def test_a_folder_of_open_clip_with_a_bin_file(micro, saved, tmp_path):
    folder = rewritten(saved, tmp_path / "downloaded", lambda config: None)
    (folder / WEIGHTS_FILE).unlink()
    torch.save(micro.model.state_dict(), folder / "open_clip_pytorch_model.bin")
    assert same_weights(load(str(folder)), micro)
    assert same_weights(load("micro", str(folder)), micro)


def test_another_architecture_is_refused(saved, tmp_path):
    with pytest.raises(ClipxError, match="another architecture") as caught:
        load("tiny", str(saved))
    assert f"model={saved}" in caught.value.hint
    with pytest.raises(ClipxError, match="not a checkpoint of tiny") as caught:
        load("tiny", str(saved / WEIGHTS_FILE))
    assert "width" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_pickle_with_code_is_refused(tmp_path):
    witness = tmp_path / "it ran"

    class Malicious:
        def __reduce__(self):
            return witness.touch, ()

    torch.save({"logit_scale": Malicious()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"logit_scale": Malicious()}, protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(ClipxError) as caught:
            load("micro", str(tmp_path / name))
        assert "not opened" in caught.value.message
    assert not witness.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_broken_file_is_named(tmp_path, content):
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        with pytest.raises(ClipxError, match=path.name):
            load("micro", str(path))


def test_a_folder_without_its_parts_is_named(saved, tmp_path):
    with pytest.raises(ClipxError, match="holds no model"):
        load(str(tmp_path))
    with pytest.raises(ClipxError, match="holds no model"):
        load(f"local-dir:{tmp_path / 'missing'}")
    bare = rewritten(saved, tmp_path / "bare", lambda config: None)
    (bare / WEIGHTS_FILE).unlink()
    for arguments in ((str(bare),), ("micro", str(bare))):
        with pytest.raises(ClipxError, match="has no weights"):
            load(*arguments)
    (bare / WEIGHTS_FILE).write_bytes(b"broken")
    with pytest.raises(ClipxError, match="cannot be read") as caught:
        load(str(bare))
    assert caught.value.hint is None  # nothing about a network
    (bare / CONFIG_FILE).write_text("{")
    with pytest.raises(ClipxError, match="not an open_clip configuration"):
        load(str(bare))


def test_unknown_names_suggest_known_ones(saved):
    with pytest.raises(ClipxError, match="no model 'ViT-B-23'") as caught:
        load("ViT-B-23")
    assert "did you mean" in caught.value.hint
    with pytest.raises(ClipxError, match="no model 'tinny'") as caught:
        load("tinny")
    assert "'tiny'" in caught.value.hint
    with pytest.raises(ClipxError, match="no pretrained weights 'opanai'") as caught:
        load("ViT-B-32", "opanai")
    assert "'openai'" in caught.value.hint


def test_a_file_is_no_model_and_is_named_as_it_was_typed(tmp_path):
    (tmp_path / "arch.json").write_text("{}")
    with pytest.raises(ClipxError, match=f"^{tmp_path}/arch.json is a file"):
        load(str(tmp_path / "arch.json"))
    with pytest.raises(ClipxError, match=f"no model '{tmp_path}/none.json'"):
        load(str(tmp_path / "none.json"))


def test_a_folder_called_like_an_architecture_does_not_hide_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-32").mkdir()
    with pytest.raises(ClipxError, match="no pretrained weights"):
        load("ViT-B-32", "nothing")


@pytest.mark.parametrize(
    ("name", "pretrained"), [("ViT-B-32", "openai"), ("ViT-B/32", "openai"), ("hf-hub:org/model", None)]
)
def test_without_a_network_the_answer_is_quick_and_clear(unreachable, name, pretrained):
    began = time.perf_counter()
    with pytest.raises(ClipxError, match="cannot get") as caught:
        load(name, pretrained)
    assert "network" in caught.value.hint
    assert time.perf_counter() - began < 10


def test_a_larger_image_interpolates_positions(micro, saved):
    larger = load(str(saved), image_size=64)
    assert larger.image_size == 64
    assert positions(larger).shape == (1 + 8 * 8, 32)
    torch.testing.assert_close(positions(larger)[0], positions(micro)[0])
    # Cubic interpolation keeps the mean but for the border.
    torch.testing.assert_close(positions(larger)[1:].mean(0), positions(micro)[1:].mean(0), atol=0.02, rtol=0)
    assert larger.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 32)
    torch.testing.assert_close(positions(load("micro", str(saved), image_size=64)), positions(larger))


def test_a_resnet_takes_larger_images_too(tmp_path):
    tiny = load("tiny")
    positions(tiny).normal_(generator=torch.Generator().manual_seed(0))
    folder = tiny.save(tmp_path / "tiny")
    larger = load(str(folder), image_size=96).eval()
    assert larger.image_size == 96
    assert positions(larger).shape[0] == 1 + 3 * 3
    torch.testing.assert_close(positions(larger)[1:], positions(tiny)[1:].expand(9, -1))
    assert larger.preprocess(torch.zeros(40, 50, 3).numpy().astype("uint8")).shape == (3, 96, 96)
    assert larger.encode_image(torch.zeros(2, 3, 96, 96)).shape == (2, 128)
    again = load(str(larger.save(tmp_path / "larger")))
    assert same_weights(again, larger)
    with pytest.raises(ClipxError, match="at least 32"):
        load(str(folder), image_size=16)


def test_another_context_length(micro, saved):
    longer = load(str(saved), context_length=32)
    assert longer.tokenize(["a"]).shape == (1, 32)
    assert longer.encode_text(longer.tokenize(["a red circle"])).shape == (1, 32)
    assert longer.model_cfg["text_cfg"]["context_length"] == 32


def test_where_the_bias_starts(micro, saved, tmp_path):
    assert micro.logit_bias is None
    fresh = load("micro", init_logit_scale=2.0, init_logit_bias=-10.0)
    assert fresh.logit_bias.item() == -10.0
    assert fresh.logit_scale.item() == pytest.approx(torch.tensor(2.0).exp().item())
    # Weights without a bias get one; their scale is their own.
    for arguments in ((str(saved),), ("micro", str(saved))):
        clip = load(*arguments, init_logit_scale=2.0, init_logit_bias=-10.0)
        assert clip.logit_bias.item() == -10.0
        assert clip.logit_scale.item() == pytest.approx(micro.logit_scale.item())
    # Weights with a bias keep it, asked for or not, and so does what is saved from them.
    torch.nn.init.constant_(fresh.model.logit_bias, -3.0)
    folder = fresh.save(tmp_path / "biased")
    for arguments in ((str(folder),), ("micro", str(folder)), ("micro", str(folder / WEIGHTS_FILE))):
        for options in ({}, {"init_logit_bias": -10.0}):
            clip = load(*arguments, **options)
            assert clip.logit_bias.item() == -3.0
            assert load(str(clip.save(tmp_path / "again"))).logit_bias.item() == -3.0


def test_the_preprocessing_comes_with_the_weights(saved, tmp_path):
    mean = [0.1, 0.2, 0.3]
    other = rewritten(saved, tmp_path / "other", lambda config: config["preprocess_cfg"].update(mean=mean))
    assert list(load(str(other)).preprocess_cfg["mean"]) == mean
    assert list(load("micro", str(other)).preprocess_cfg["mean"]) == mean
    assert load("micro", str(other)).mean.flatten().tolist() == pytest.approx(mean)


def test_a_hugging_face_tokenizer_travels_with_the_model(micro, saved, tmp_path):
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, "red": 3, "circle": 4}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    source = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    ).save_pretrained(source)
    clip = load(str(saved))
    clip.tokenizer = HFTokenizer(str(source), context_length=16)
    clip.model_cfg["text_cfg"]["hf_tokenizer_name"] = "org/not-to-be-reached"
    folder = clip.save(tmp_path / "model")
    shutil.rmtree(source)
    assert load(str(folder)).tokenize(["red circle"])[0, :3].tolist() == [3, 4, 0]


def test_what_is_saved_is_what_was_loaded(micro, saved):
    stored = load_file(saved / WEIGHTS_FILE)
    assert all(torch.equal(stored[key], value) for key, value in micro.model.state_dict().items())


def test_towers_that_share_their_trunk_are_saved_as_a_model_that_open_clip_knows(tmp_path):
    import open_clip

    torch.manual_seed(0)
    clip = load("micro", share=["blocks", "norm", "projection"]).eval()
    folder = clip.save(tmp_path / "model")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    ours = load(str(folder)).eval()
    assert ours.model.visual.transformer is ours.model.transformer
    assert len(list(ours.parameters())) == len(list(clip.parameters())) < len(list(theirs.parameters()))
    images, tokens = torch.randn(2, 3, 32, 32), clip.tokenize(["a red circle", "a star"])
    with torch.no_grad():
        for mine, other in (
            (clip.encode_image(images), theirs.eval().encode_image(images, normalize=True)),
            (clip.encode_text(tokens), theirs.encode_text(tokens, normalize=True)),
            (clip.encode_image(images), ours.encode_image(images)),
        ):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
    assert load(str(folder), share=[]).own_cfg == {}
    assert load("micro", str(folder)).model.visual.proj is not None
    assert load("micro", str(folder)).own_cfg["share"] == ["blocks", "norm", "projection"]


def test_weights_that_were_trained_apart_are_not_shared(saved, tmp_path):
    state = load_file(saved / WEIGHTS_FILE)
    folder = rewritten(saved, tmp_path / "moved", lambda config: None)
    save_file({**state, "ln_final.bias": state["ln_final.bias"] + 1}, folder / WEIGHTS_FILE)
    with pytest.raises(ClipxError, match="trained apart: sharing their norm"):
        load(str(folder), share=["norm"])
    with pytest.raises(ClipxError, match="sharing their blocks"):
        load(str(saved), share=["blocks"])
