import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from clipx.errors import ClipxError
from clipx.inference.zero_shot import class_logits, classify, probabilities, zero_shot_classifier
from clipx.models.geometry import COSINE
from clipx.models.loading import load

NAMES = ["red circle", "blue square", "green star"]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}.", "the {} in the dark"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load("micro").eval()


def test_agrees_with_open_clip(clip):
    calls = [lambda name, template=template: template.replace("{}", name) for template in TEMPLATES]
    expected = open_clip.build_zero_shot_classifier(
        clip.model, clip.tokenizer, NAMES, calls, num_classes_per_batch=2
    )
    assert torch.allclose(zero_shot_classifier(clip, NAMES, TEMPLATES), expected.T, atol=1e-6)


def test_is_the_mean_of_unit_embeddings():
    """Prompts of length 3 and 4 embed as rows of different length: only directions may count."""

    class Fixed(nn.Module):
        device, logit_bias, comparison = torch.device("cpu"), None, COSINE

        def tokenize(self, texts):
            return torch.tensor([[len(text)] for text in texts])

        def shorten(self, tokens):
            return tokens

        def encode_text(self, tokens, normalize=True):
            rows = torch.tensor([[0.0, 5.0] if n.item() == 4 else [1.0, 0.0] for n in tokens])
            return nn.functional.normalize(rows, dim=1) if normalize else rows

    rows = zero_shot_classifier(Fixed(), ["x"], ["a{}", "a {}", "ab {}"])
    expected = nn.functional.normalize(torch.tensor([[2.0, 1.0]]), dim=1)
    assert torch.allclose(rows, expected)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 256])
def test_batches_do_not_matter(clip, batch_size):
    whole = zero_shot_classifier(clip, NAMES, TEMPLATES)
    assert torch.allclose(
        whole, zero_shot_classifier(clip, NAMES, TEMPLATES, batch_size=batch_size), atol=1e-6
    )
    assert torch.allclose(whole.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], TEMPLATES, "no class names"),
        ("cat", TEMPLATES, "no class names"),
        (["cat", " "], TEMPLATES, "class 1 has a blank name"),
        (NAMES, [], "no prompt templates"),
        (NAMES, ["a photo"], "'a photo' does not hold one"),
        (NAMES, ["{} and {}"], "does not hold one"),
    ],
)
def test_what_makes_no_prompt(clip, names, templates, message):
    with pytest.raises(ClipxError, match=message):
        zero_shot_classifier(clip, names, templates)


def test_a_name_with_braces_is_taken_as_it_is(clip):
    assert zero_shot_classifier(clip, ["{0} {x}"]).shape == (1, 32)


def test_logits_are_the_models_scores_in_chunks(clip, monkeypatch):
    images, classes = torch.randn(10, 32), torch.randn(3, 32)
    with torch.no_grad():
        expected = clip.score(images, classes)
    parts = list(class_logits(clip, images, classes, at_once=4))
    assert [(rows.start, rows.stop) for rows, _ in parts] == [(0, 4), (4, 8), (8, 10)]
    assert torch.allclose(torch.cat([logits for _, logits in parts]), expected, atol=1e-6)
    monkeypatch.setattr(type(clip), "score", lambda self, i, t: -torch.cdist(i, t))
    (_, logits), *_ = class_logits(clip, images, classes)
    assert torch.allclose(logits, -torch.cdist(images, classes), atol=1e-5)


def test_classify_gives_open_clips_probabilities(clip):
    images = [np.random.default_rng(i).integers(0, 256, (40, 32, 3), dtype=np.uint8) for i in range(5)]
    found = classify(clip, images, NAMES, TEMPLATES, batch_size=2)
    pixels = torch.stack([clip.preprocess(image) for image in images])
    with torch.no_grad():
        features = clip.model.encode_image(clip.normalize(pixels), normalize=True)
        scale = clip.model.logit_scale.exp()
        expected = (scale * features @ zero_shot_classifier(clip, NAMES, TEMPLATES).T).softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(5))
    with pytest.raises(ClipxError, match="no images"):
        classify(clip, [], NAMES)


def test_a_model_with_a_bias_judges_each_label_by_itself():
    biased = load("micro", init_logit_bias=-10.0)
    logits = torch.tensor([[0.0, 2.0]])
    assert torch.allclose(probabilities(biased, logits), logits.sigmoid())
