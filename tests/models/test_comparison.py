"""A model with a comparison of its own: built, saved, loaded, scored and stored like any other."""

import copy
import json

import open_clip
import pytest
import torch
from pictures import TEXTS, Pictures, four_images, rows_of
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.features.encode import encode
from clipx.inference.fisher import fisher_of
from clipx.inference.zero_shot import classify, zero_shot_classifier
from clipx.models.clip import CONFIG_FILE, WEIGHTS_FILE
from clipx.models.comparison import COSINE, KINDS, attach, check_cosine
from clipx.models.geometry import GEOMETRIES, Geometry
from clipx.models.layers import distances_from_top
from clipx.models.loading import load
from clipx.models.mixture import Mixture
from clipx.models.patches import embed_with_patches
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.siglip import SigLIP
from clipx.tasks.retrieval import retrieval
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

EUCLIP = {"comparison": {"kind": "euclidean-squared"}, "final_norm": False}
LLIP = {"comparison": {"kind": "mixture", "tokens": 3, "heads": 2, "tau": 1.0}}


def made(seed=0, **options):
    torch.manual_seed(seed)
    return load("micro", **options).eval()


@pytest.fixture(scope="module", params=[EUCLIP, {"comparison": {"kind": "hyperbolic"}}, LLIP])
def clip(request):
    return made(init_logit_bias=-1.0, **request.param)


@pytest.fixture(scope="module")
def images():
    return four_images()


def test_what_is_saved_compares_as_before(clip, images, tmp_path):
    again = load(str(clip.save(tmp_path / "model"))).eval()
    assert again.own_cfg == clip.own_cfg
    assert again.fingerprint() == clip.fingerprint()
    assert torch.equal(clip.score(*rows_of(clip, images)), again.score(*rows_of(again, images)))
    onto = load("micro", pretrained=str(tmp_path / "model")).eval()
    assert onto.own_cfg == clip.own_cfg
    assert torch.equal(clip.score(*rows_of(clip, images)), onto.score(*rows_of(onto, images)))


def test_the_cosine_leaves_no_trace_in_what_is_saved(micro, tmp_path):
    folder = micro.save(tmp_path / "model")
    assert set(json.loads((folder / CONFIG_FILE).read_text())) == {"model_cfg", "preprocess_cfg"}
    assert not [key for key in micro.model.state_dict() if key.startswith("comparison")]
    assert load(str(folder), comparison={"kind": "clip"}, final_norm=True).own_cfg == {}


def test_open_clip_refuses_weights_that_it_would_compare_by_the_cosine(clip, tmp_path):
    folder = clip.save(tmp_path / "model")
    with pytest.raises(RuntimeError, match="comparison"):
        open_clip.create_model(f"local-dir:{folder}", pretrained=str(folder / WEIGHTS_FILE))


def test_settings_can_change_at_loading_and_kinds_after_the_weights(images, tmp_path):
    clip = made(**LLIP)
    folder = str(clip.save(tmp_path / "mixture"))
    other = load(folder, comparison={"tau": 8.0}).eval()
    assert other.comparison.spec == {**clip.comparison.spec, "tau": 8.0}
    assert torch.equal(other.comparison.to_keys, clip.comparison.to_keys)
    assert not torch.allclose(other.score(*rows_of(other, images)), clip.score(*rows_of(clip, images)))
    assert other.fingerprint() != clip.fingerprint()
    with pytest.raises(ClipxError, match="by mixture has no other comparison"):
        load(folder, comparison={"kind": "clip"})
    plain = made()
    taken = load("micro", str(plain.save(tmp_path / "plain")), **LLIP)
    assert torch.equal(taken.model.visual.conv1.weight, plain.model.visual.conv1.weight)
    assert isinstance(taken.comparison, Mixture)
    distance = made(**EUCLIP)
    flat = load(str(distance.save(tmp_path / "flat")), comparison={"kind": "hyperbolic"})
    assert flat.own_cfg["comparison"]["kind"] == flat.comparison.kind == "hyperbolic"


def test_bounds_of_the_scale_are_saved_and_kept(tmp_path):
    clip = made(init_logit_scale=-1.0, logit_scale_bounds=[None, 2.0])
    again = load(str(clip.save(tmp_path / "model")))
    for model in (clip, again):
        model.clamp_logit_scale()
        assert float(model.model.logit_scale.detach()) == -1.0
        model.model.logit_scale.data.fill_(3.0)
        model.clamp_logit_scale()
        assert float(model.model.logit_scale.detach()) == 2.0
    free = made(init_logit_scale=-1.0)
    free.clamp_logit_scale()
    assert float(free.model.logit_scale.detach()) == 0.0
    with pytest.raises(ClipxError, match="are no bounds"):
        load("micro", logit_scale_bounds=[2.0, 1.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"comparison": {"kind": "euclidian"}}, "no comparison 'euclidian'"),
        ({"comparison": {"kind": "clip", "tau": 3}}, "unexpected keyword argument 'tau'"),
        ({"comparison": {"kind": "hyperbolic", "curvature": 20}}, "curvature=20"),
        ({"comparison": {"kind": "mixture", "heads": 5}}, "heads=5 must divide the 32"),
        ({"comparison": {"kind": "mixture", "tau": 0}}, "tau=0"),
        ({"comparison": {"kind": "mixture", "tokens": 0}}, "tokens=0"),
        ({"comparison": {"kind": "mixture", "keep": "some"}}, "keep=some"),
    ],
)
def test_mistakes_are_named(options, words):
    with pytest.raises(ClipxError, match=words):
        load("micro", **options)


def test_towers_that_do_not_go_with_it_are_named():
    with pytest.raises(ClipxError, match="not into a ModifiedResNet"):
        load("tiny", **LLIP)
    assert type(load("tiny", **EUCLIP).model.ln_final) is torch.nn.Identity
    bare = load("tiny", "tiny", final_norm=False)
    assert type(bare.model.ln_final) is torch.nn.Identity
    assert torch.equal(bare.model.text_projection, load("tiny", "tiny").model.text_projection)
    with pytest.raises(ClipxError, match="by mixture: no image is one vector"):
        embed_with_patches(made(**LLIP), torch.zeros(1, 3, 32, 32))


def test_scores_are_those_of_the_rows_one_by_one(clip, images):
    image, text = rows_of(clip, images)
    scores = clip.score(image, text)
    for m in range(4):
        for n in range(3):
            alone = clip.comparison.pairs(image[m : m + 1], text[n : n + 1], clip.logit_scale)
            torch.testing.assert_close(scores[m, n], alone[0] + clip.logit_bias)
    turned = clip.comparison.text_to_image(text, image, clip.logit_scale) + clip.logit_bias
    torch.testing.assert_close(turned, scores.T)


def test_zero_shot_retrieval_and_the_store_take_any_comparison(clip, images, tmp_path):
    source = Pictures(images)
    found = encode(clip, source, split="test", root=tmp_path, workers=0)
    image, text = rows_of(clip, images)
    torch.testing.assert_close(found.image, image)
    torch.testing.assert_close(found.text, text)
    raw = encode(clip, source, split="test", bank="raw", root=tmp_path, workers=0)
    torch.testing.assert_close(raw.image, image)
    estimates = retrieval(clip.score, found.image, found.text, found.pairs)
    best = clip.score(image, text).argmax(0)
    hits = sum(TEXTS[int(best[n]) % 3] == TEXTS[n] for n in range(3))
    assert estimates["text_to_image_recall@1"].value == pytest.approx(hits / 3)
    classifier = zero_shot_classifier(clip, source.classes, source.templates)
    assert classifier.shape == (2, text.shape[1])
    pictures = [each.permute(1, 2, 0).numpy() for each in images]
    expected = clip.score(image, classifier).sigmoid()
    torch.testing.assert_close(classify(clip, pictures, source.classes, source.templates), expected)
    fisher = fisher_of(clip, None, source, templates=source.templates, samples=2, workers=0)
    assert fisher["clip.model.logit_scale"] > 0


def test_the_store_tells_comparisons_apart(images, tmp_path):
    source, clip = Pictures(images), made()
    plain = encode(clip, source, split="test", root=tmp_path, workers=0)
    other = copy.deepcopy(clip)
    attach(other.model, {"kind": "elliptic"}, 32)
    other.own_cfg = {"comparison": other.comparison.spec}
    again = encode(other, source, split="test", root=tmp_path, workers=0)
    assert plain.encoded
    assert again.encoded
    assert not encode(clip, source, split="test", root=tmp_path, workers=0).encoded


@pytest.mark.parametrize("objective", [InfoNCE, SigLIP])
def test_every_parameter_learns_and_bf16_will_do(clip, images, objective):
    model = copy.deepcopy(clip).train()
    module = TrainingModule(model, {"one": objective()})
    batch = {"image": images[:3], "text": clip.tokenize(TEXTS)}
    exact = module(batch)["loss"]
    exact.backward()
    still = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    # A softmax does not see the bias; biases of keys move all attention alike.
    assert [name for name in still if not name.endswith(("logit_bias", "in_proj_bias"))] == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(batch)["loss"], exact, rtol=0.05, atol=0.05)


def test_objectives_of_the_cosine_refuse_other_comparisons(clip):
    class Cosines(torch.nn.Module):
        needs = ("image", "text")

    with pytest.raises(ClipxError, match=f"the objective mine .* by {clip.comparison.kind}"):
        TrainingModule(clip, {"mine": Cosines()})
    TrainingModule(made(), {"mine": Cosines()})
    check_cosine(COSINE, "anything", "")
    for chunked in (InfoNCE(chunk_size=2), SigLIP(chunk_size=2)):
        encoded = Encoded(
            clip, {}, dict(zip(("image", "text"), rows_of(clip, torch.zeros(3, 3, 32, 32)), strict=True))
        )
        with pytest.raises(ClipxError, match="chunk_size"):
            chunked(encoded)


def test_images_among_images_are_unit_vectors(clip, images):
    pooled = clip.comparison.pooled_images(rows_of(clip, images)[0])
    assert pooled.shape == (4, 32)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(4))


def test_layers_count_what_a_comparison_owns():
    model = made(**LLIP).model
    distances = distances_from_top(model)
    assert set(distances) == {name for name, _ in model.named_parameters()}
    assert distances["comparison.extra_tokens"] == distances["visual.class_embedding"]
    assert distances["comparison.output"] == 0


def test_the_kinds_are_those_of_geometry_and_the_mixture():
    assert set(KINDS) == {*GEOMETRIES, "mixture"}
    assert functional.normalize(torch.ones(1, 2)).equal(Geometry().image_rows(torch.ones(1, 2)))
