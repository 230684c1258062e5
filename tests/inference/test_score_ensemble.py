import copy

import pytest
import torch
from pictures import TEXTS, Pictures, four_images, rows_of
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import encode
from clipx.inference.score_ensemble import (
    ScoreEnsemble,
    concatenated,
    ensemble,
    weight_curve,
    weighted_scores,
)
from clipx.inference.zero_shot import classify, zero_shot_classifier
from clipx.models.geometry import COSINE, unit_rows
from clipx.models.loading import load
from clipx.objectives.heads import mlp
from clipx.objectives.kept_heads import KeptHeads

WEIGHTS = [0.0, 0.1, 0.5, 0.9, 1.0]


def heads_of(seed=5, widths=(32, 16, 8)):
    torch.manual_seed(seed)
    return KeptHeads(mlp(widths).eval(), mlp(widths).eval(), widths, 10.0)


@pytest.fixture
def clip(micro):
    return copy.deepcopy(micro)


@pytest.fixture(scope="module")
def images():
    return four_images()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_product_of_concatenated_rows_is_the_weighted_sum_of_cosines(weight):
    torch.manual_seed(0)
    z, z_text = torch.randn(5, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    h, h_text = torch.randn(5, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = weight * functional.cosine_similarity(z[:, None], z_text[None], dim=-1)
    expected += (1 - weight) * functional.cosine_similarity(h[:, None], h_text[None], dim=-1)
    image = torch.cat([unit_rows(z), unit_rows(h)], 1)
    text = torch.cat([unit_rows(z_text), unit_rows(h_text)], 1)
    options = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(weighted_scores(image, text, 6, weight), expected, **options)
    torch.testing.assert_close(weighted_scores(image, text, 6, weight, 10.0) / 10, expected, **options)
    joined = concatenated(image, 6, weight)
    torch.testing.assert_close(joined @ concatenated(text, 6, weight).T, expected, **options)
    torch.testing.assert_close(joined.norm(dim=1), torch.ones(5, dtype=torch.float64), **options)
    comparison = ScoreEnsemble(torch.nn.Identity(), torch.nn.Identity(), 6, weight)
    torch.testing.assert_close(comparison.image_to_text(image, text), expected, **options)
    torch.testing.assert_close(comparison.text_to_image(text, image, 2.0), 2 * expected.T, **options)
    torch.testing.assert_close(comparison.pairs(image, text[:5]), expected.diagonal(), **options)
    torch.testing.assert_close(comparison.pooled_images(image), joined, **options)


def test_its_ends_are_the_model_and_the_heads_alone(clip, images):
    heads = heads_of()
    z, z_text = rows_of(clip, images)
    with torch.no_grad():
        features = clip.encode_image(clip.normalize(images), normalize=False)
        texts = clip.encode_text(clip.tokenize(TEXTS), normalize=False)
        h, h_text = unit_rows(heads.image(features)), unit_rows(heads.text(texts))
    for weight, expected in (
        (1.0, clip.score(z, z_text)),
        (0.0, clip.logit_scale * h @ h_text.T),
        (0.3, clip.logit_scale * (0.3 * z @ z_text.T + 0.7 * h @ h_text.T)),
    ):
        model = ensemble(clip, heads, weight)
        rows = rows_of(model, images)
        assert rows[0].shape == (4, 40)
        torch.testing.assert_close(model.score(*rows), expected, rtol=0, atol=1e-5)
    assert clip.comparison.kind == COSINE.kind  # as it was
    assert torch.equal(clip.score(*rows_of(clip, images)), clip.score(z, z_text))


def test_a_class_is_the_mean_of_either_part_of_its_prompts(clip):
    templates = ["a {}", "one {}", "{} here"]
    heads = heads_of()
    found = zero_shot_classifier(ensemble(clip, heads, 0.2), ["circle", "star"], templates)
    torch.testing.assert_close(found[:, :32], zero_shot_classifier(clip, ["circle", "star"], templates))
    with torch.no_grad():
        prompts = clip.tokenize([template.format("star") for template in templates])
        h = unit_rows(heads.text(clip.encode_text(prompts, normalize=False)))
    torch.testing.assert_close(found[1, 32:], functional.normalize(h.mean(0), dim=0))


def test_probabilities_are_at_the_scale_of_the_model(clip, images):
    pictures = [each.permute(1, 2, 0).numpy() for each in images]
    model = ensemble(clip, heads_of(), 0.5)
    image, _ = rows_of(model, images)
    scores = weighted_scores(image, zero_shot_classifier(model, TEXTS, ["{}"]), 32, 0.5)
    found = classify(model, pictures, TEXTS, ["{}"])
    torch.testing.assert_close(found, (clip.logit_scale.detach() * scores).softmax(-1))


def test_one_encoding_serves_all_weights_and_heads_have_their_own(clip, images, tmp_path):
    source, options = Pictures(images), {"split": "test", "root": tmp_path, "workers": 0}
    plain = encode(clip, source, **options)
    model = ensemble(clip, heads_of(), 0.5)
    features = encode(model, source, **options)
    assert features.encoded
    assert not encode(ensemble(clip, heads_of(), 0.9), source, **options).encoded
    assert encode(ensemble(clip, heads_of(6), 0.5), source, **options).encoded
    assert len({each.fingerprint() for each in (clip, model, ensemble(clip, heads_of(6), 0.5))}) == 3
    torch.testing.assert_close(features.image[:, :32], plain.image)

    classifier = zero_shot_classifier(model, source.classes, source.templates)
    curve = weight_curve(model, WEIGHTS, features, classifier=classifier, retrieve=True)
    assert list(curve) == ["top1", "image_to_text_recall@1", "text_to_image_recall@1"]
    for place, weight in enumerate(WEIGHTS):
        scores = weighted_scores(features.image, classifier, 32, weight)
        right = (scores.argmax(1) == features.labels).float().mean()
        assert curve["top1"][place] == pytest.approx(right.item())
    assert list(weight_curve(model, [0.5], features, classifier=classifier)) == ["top1"]
    assert model.comparison.weight == 0.5


def test_heads_stay_in_float32_where_towers_do_not(clip, images):
    model = ensemble(clip, heads_of(), 0.5)
    exact = rows_of(model, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = rows_of(model, images)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=0.05)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "half", True])
def test_a_weight_out_of_its_range_is_named(clip, weight):
    with pytest.raises(ClipxError, match=f"the weight {weight} does not lie") as raised:
        ensemble(clip, heads_of(), weight)
    assert "ensemble.weight=0.5" in raised.value.hint


def test_heads_and_models_that_do_not_go_together_are_named(clip):
    with pytest.raises(ClipxError, match="these heads take 16 numbers, the embeddings of micro have 32"):
        ensemble(clip, heads_of(widths=(16, 8)), 0.5)
    torch.manual_seed(0)
    with pytest.raises(ClipxError, match="this model compares by elliptic"):
        ensemble(load("micro", comparison={"kind": "elliptic"}), heads_of(), 0.5)
