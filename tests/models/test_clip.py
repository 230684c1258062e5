import copy

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipx.errors import ClipxError
from clipx.models.clip import images_to_features
from clipx.models.loading import load

SENTENCES = ["a red circle", "ein roter Kreis", "一个红色的圆", "круг", "🔴 !?", "", "word " * 100]


@pytest.fixture(scope="module", params=["micro", "tiny"])
def clip(request):
    torch.manual_seed(0)
    return load(request.param).eval()


def pictures(*sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@torch.no_grad()
def test_open_clip_loads_what_is_saved(clip, tmp_path):
    folder = clip.save(tmp_path / "model")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.SimpleTokenizer(
        bpe_path=str(folder / "bpe_merges.txt.gz"),
        context_length=clip.model_cfg["text_cfg"]["context_length"],
    )
    images = pictures((48, 48), (64, 40), (31, 97))
    ours = clip.normalize(torch.stack([clip.preprocess(image) for image in images]))
    theirs = torch.stack([preprocess(image) for image in images])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        clip.encode_image(ours), model.encode_image(theirs, normalize=True), atol=1e-5, rtol=0
    )
    tokens = tokenizer(SENTENCES)
    assert torch.equal(clip.tokenize(SENTENCES), tokens)
    torch.testing.assert_close(
        clip.encode_text(tokens), model.encode_text(tokens, normalize=True), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(clip.logit_scale, model.logit_scale.exp())


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (32, 48)])
def test_preprocessing_is_that_of_open_clip(resize_mode, size):
    from clipx.data.transforms import inference_transform

    config = open_clip.transform.PreprocessCfg(size=size, resize_mode=resize_mode, fill_color=7)
    ours = inference_transform(vars(config))
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)
    mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
    for image in pictures((32, 32), (48, 32), (300, 20), (33, 90), (1, 1), (224, 224)):
        pixels = ours(image)
        assert pixels.dtype == torch.uint8
        torch.testing.assert_close((pixels / 255 - mean) / std, theirs(image), atol=1e-6, rtol=0)


@torch.no_grad()
def test_embeddings_are_unit_rows(clip):
    size = clip.image_size
    images = torch.rand(3, 3, size, size)
    tokens = clip.tokenize(SENTENCES)
    for features in (clip.encode_image(images), clip.encode_text(tokens)):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    raw = clip.encode_image(images, normalize=False)
    torch.testing.assert_close(torch.nn.functional.normalize(raw, dim=-1), clip.encode_image(images))


@torch.no_grad()
def test_scores_apply_scale_and_bias(micro):
    image, text = torch.nn.functional.normalize(torch.randn(2, 4, 32), dim=-1)
    torch.testing.assert_close(micro.score(image, text), micro.logit_scale * image @ text.T)
    biased = load("micro", init_logit_bias=-10.0)
    torch.testing.assert_close(biased.score(image, text), biased.logit_scale * image @ text.T - 10)


@torch.no_grad()
def test_images_to_features_in_two_precisions(micro):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = images_to_features(micro, images)
    torch.testing.assert_close(exact, micro.encode_image(micro.normalize(images)))
    rough = images_to_features(micro, images, torch.bfloat16)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0)


def test_the_scale_stays_between_1_and_100(micro):
    clip = copy.deepcopy(micro)
    for value, kept in ((9.0, 100.0), (-1.0, 1.0), (2.0, float(np.exp(2.0)))):
        torch.nn.init.constant_(clip.model.logit_scale, value)
        clip.clamp_logit_scale()
        assert clip.logit_scale.item() == pytest.approx(kept, rel=1e-6)


def test_another_scale_takes_the_place_of_the_models(micro):
    clip = copy.deepcopy(micro)
    for scale in (1, 50.0, 100):
        clip.set_logit_scale(scale)
        assert clip.logit_scale.item() == pytest.approx(scale)
        clip.clamp_logit_scale()
        assert clip.logit_scale.item() == pytest.approx(scale)
    for wrong in (0, 0.5, 101, float("nan"), float("inf")):
        with pytest.raises(ClipxError, match=f"logit_scale={wrong} must lie between 1 and 100"):
            clip.set_logit_scale(wrong)
    clip.own_cfg["logit_scale_bounds"] = (None, None)
    clip.set_logit_scale(200)
    assert clip.logit_scale.item() == pytest.approx(200)
    for wrong in (0, -1, float("inf")):
        with pytest.raises(ClipxError, match=f"logit_scale={wrong} must lie between 0 and infinity"):
            clip.set_logit_scale(wrong)


def test_the_fingerprint_follows_weights_architecture_and_preprocessing(micro, tmp_path):
    first = micro.fingerprint()
    assert micro.fingerprint() == first
    assert load(str(micro.save(tmp_path / "model"))).fingerprint() == first
    assert copy.deepcopy(micro).fingerprint() == first
    for name in ("visual.proj", "logit_scale", "token_embedding.weight"):
        clip = copy.deepcopy(micro)
        with torch.no_grad():
            clip.model.state_dict()[name].view(-1)[-1].add_(1e-3)
        assert clip.fingerprint() != first
    for change in ("preprocess_cfg", "model_cfg"):
        clip = copy.deepcopy(micro)
        getattr(clip, change)["interpolation" if change == "preprocess_cfg" else "quick_gelu"] = "bilinear"
        assert clip.fingerprint() != first


def test_the_layout_in_memory_is_not_in_the_fingerprint(micro_resnet):
    trained = copy.deepcopy(micro_resnet).to(memory_format=torch.channels_last)
    assert trained.fingerprint() == micro_resnet.fingerprint()
