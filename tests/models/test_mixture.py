"""Mixture tokens: the numbers of the sheet, one text at a time, chunks, what the tower reads."""

import math

import pytest
import torch
from torch.nn import functional

from clipx.models import mixture as mixtures
from clipx.models.loading import load
from clipx.models.mixture import Mixture, attention, mixed
from clipx.objectives.siglip import sigmoid_loss

KEYS = torch.tensor([[[1, 0], [0, 1]], [[2, 0], [0, 1]]], dtype=torch.float64)
VALUES = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, -1]]], dtype=torch.float64)
QUERIES = torch.tensor([[5, 0], [0, 5]], dtype=torch.float64)


def small(tau=5.0, **options):
    torch.manual_seed(2)
    return Mixture(4, 4, 2, 4, **{"tokens": 2, "heads": 1, "tau": tau, **options}).double()


def by_sheet(tau):
    mixture = small(tau)
    with torch.no_grad():
        mixture.output.copy_(torch.eye(2))
    image = torch.cat([KEYS.flatten(1), VALUES.flatten(1)], dim=1)
    return mixture, image, torch.cat([torch.eye(2, dtype=torch.float64), QUERIES], dim=1)


def test_mixtures_and_losses_are_those_of_the_paper():
    found = functional.normalize(mixed(KEYS[:, :, None], VALUES[:, :, None], QUERIES[:, None], 5.0), dim=-1)
    expected = {(0, 0): [0.938508, 0.345258], (1, 0): [0.795551, 0.605887], (1, 1): [0.907759, -0.419491]}
    for place, values in expected.items():
        assert found[place].tolist() == pytest.approx(values, abs=1e-6)
    for tau, loss in ((5.0, 7.898007), (1.0, 9.230824)):
        mixture, image, text = by_sheet(tau)
        assert sigmoid_loss(image, text, 10.0, -10.0, compare=mixture).item() == pytest.approx(loss, abs=1e-6)


def test_heads_attend_each_for_itself_without_a_root():
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, 4, 2, 3, generator=generator, dtype=torch.float64)
    queries = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    output = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    found = mixed(keys, values, queries, 0.7, output)
    for m in range(3):
        for n in range(5):
            heads = []
            for h in range(2):
                shares = torch.softmax(keys[m, :, h] @ queries[n, h] / 0.7, 0)
                heads.append(shares @ values[m, :, h])
            torch.testing.assert_close(found[m, n], torch.cat(heads) @ output)
    shares = attention(keys, queries, 0.7)
    assert shares.shape == (3, 5, 2, 4)
    torch.testing.assert_close(shares.sum(-1), torch.ones(3, 5, 2, dtype=torch.float64))


def test_gradients_are_exact_also_in_chunks(monkeypatch):
    mixture = small(1.0)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 8, generator=generator, dtype=torch.float64).requires_grad_()
    text = mixture.text_rows(torch.randn(2, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *rows: mixture.image_to_text(*rows, 3.0), (image, text))

    def gradients():
        mixture.zero_grad()
        scores = mixture.image_to_text(image, text, 3.0)
        found = torch.autograd.grad(scores.square().sum(), [image, text, mixture.output])
        return scores, *found

    whole = gradients()
    monkeypatch.setattr(mixtures, "_NUMBERS_AT_ONCE", 4)
    calls = []
    own = Mixture._cosines
    monkeypatch.setattr(Mixture, "_cosines", lambda *arguments: calls.append(1) or own(*arguments))
    torch.testing.assert_close(gradients(), whole)
    assert len(calls) == 6  # three chunks, each again on the way back
    with torch.no_grad():
        torch.testing.assert_close(mixture.image_to_text(image, text, 3.0), whole[0])
    assert len(calls) == 9


def test_prompts_of_a_class_average_their_queries_as_they_are():
    mixture = small()
    texts = torch.tensor([[[1.0, 0, 4, 0], [0, 1.0, 0, 2]]])
    root = math.sqrt(0.5)
    torch.testing.assert_close(mixture.mean_of_texts(texts), torch.tensor([[root, root, 2, 1]]))


def test_images_among_images_are_their_mean_values_times_the_output():
    mixture, image, _ = by_sheet(5.0)
    mean = VALUES.mean(1)
    torch.testing.assert_close(mixture.pooled_images(image), functional.normalize(mean, dim=-1))
    mixture.output.data = 2 * torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64)
    torch.testing.assert_close(mixture.pooled_images(image), functional.normalize(mean.flip(1), dim=-1))


def made(**options):
    torch.manual_seed(0)
    return load("micro", comparison={"kind": "mixture", "heads": 2, "tau": 1.0, **options}).eval()


@torch.no_grad()
def test_one_token_is_the_class_token_of_the_tower(micro):
    clip, images = made(tokens=1), torch.randn(2, 3, 32, 32)
    clip.model.visual.load_state_dict(
        {key: value for key, value in micro.model.visual.state_dict().items() if key != "proj"}
    )
    hidden = micro.model.visual
    kept, hidden.proj = hidden.proj, None
    pooled = hidden(images)
    hidden.proj = kept
    keys, values = clip.encode_image(images).split(32, dim=1)
    torch.testing.assert_close(keys, pooled @ clip.comparison.to_keys[0])
    torch.testing.assert_close(values, pooled @ clip.comparison.to_values[0])
    # A single token is all that there is to mix: every text sees the same vector.
    text = clip.encode_text(clip.tokenize(["a circle", "a star"]))
    vector = functional.normalize(values @ clip.comparison.output, dim=-1)
    expected = vector @ functional.normalize(text[:, :32], dim=-1).T
    torch.testing.assert_close(clip.comparison.image_to_text(*(clip.encode_image(images), text)), expected)


@torch.no_grad()
def test_texts_are_read_where_they_end_whatever_is_cut(micro):
    clip = made(tokens=3)
    tokens = clip.tokenize(["a circle", "two red stars"])
    whole, short = clip.encode_text(tokens), clip.encode_text(clip.shorten(tokens))
    torch.testing.assert_close(short, whole)
    kept, clip.model.text_projection = clip.model.text_projection, None
    end = clip.model.encode_text(tokens)
    clip.model.text_projection = kept
    torch.testing.assert_close(whole[:, 32:], end @ clip.comparison.to_query)
    torch.testing.assert_close(whole[:, :32], functional.normalize(end @ kept, dim=-1))


@torch.no_grad()
def test_patches_and_norms_can_be_kept_too():
    images = torch.randn(2, 3, 32, 32)
    clip = made(tokens=3, keep="all", use_norm=True)
    assert clip.encode_image(images).shape == (2, 2 * (3 + 16) * 32)
    keys = clip.encode_image(images).unflatten(1, (2, 19, 32))
    torch.testing.assert_close(keys.mean(-1), torch.zeros(2, 2, 19), atol=1e-5, rtol=0)
    torch.testing.assert_close(keys.var(-1, correction=0), torch.ones(2, 2, 19), atol=1e-3, rtol=0)


@torch.no_grad()
def test_tokens_read_one_another_but_each_counts_for_itself():
    clip, images = made(tokens=3), torch.randn(2, 3, 32, 32)
    before = clip.encode_image(images)
    clip.comparison.extra_tokens[1] += 1.0
    after = clip.encode_image(images)
    assert not torch.allclose(before, after)
    shares = clip.comparison.shares(after, clip.encode_text(clip.tokenize(["a circle"])))
    assert shares.shape == (2, 1, 2, 3)
    entropy = -(shares * shares.log()).sum(-1)
    assert (entropy < math.log(3)).all()
