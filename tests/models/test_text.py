"""Texts cut behind the longest of a batch embed as they do at the full length."""

import open_clip
import pytest
import torch

from clipx.models import text
from clipx.models.loading import load
from clipx.models.tokenizer import special_ids

CUSTOM = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def custom(**changes):
    torch.manual_seed(0)
    text_cfg = {**CUSTOM["text_cfg"], **changes}
    return open_clip.CustomTextCLIP(16, CUSTOM["vision_cfg"], text_cfg).eval().double()


def built_in():
    return load("tiny").eval().double().model


@pytest.mark.parametrize(
    "build", [built_in, custom, lambda: custom(pool_type="eos", eos_id=49407), lambda: custom(proj_bias=True)]
)
def test_short_texts_embed_as_whole_ones(build):
    model = build()
    tower = text.causal_tower(model)
    length, vocabulary = tower.positional_embedding.shape[0], tower.token_embedding.num_embeddings
    end = vocabulary - 1
    tokens = torch.zeros(3, length, dtype=torch.int64)
    for row, count in enumerate((2, 9, 5)):
        tokens[row, :count] = torch.randint(1, end, (count,))
        tokens[row, count] = end
    short = text.shorten(model, tokens)
    assert short.shape == (3, 12)
    assert torch.equal(short, tokens[:, :12])
    whole = model.encode_text(tokens)
    assert torch.allclose(text.encode_short(model, short), whole, atol=1e-12)
    assert torch.equal(text.encode_short(model, tokens), whole)


def test_the_gradient_is_that_of_the_whole_length():
    model = built_in()
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    tokens[:, :3] = torch.tensor([[7, 8, 4095], [5, 4095, 0]])
    grads = []
    for given in (tokens, text.shorten(model, tokens)):
        model.zero_grad()
        text.encode_short(model, given).square().sum().backward()
        grads.append(model.positional_embedding.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=1e-12)
    assert grads[1][4:].abs().max() == 0


def test_several_texts_an_image_are_cut_together():
    tokens = torch.zeros(2, 4, 32, dtype=torch.int64)
    tokens[1, 3, :11] = 4095
    tokens[1, 3, 10] = 4096  # no such id, yet the highest: only its place matters here
    assert text.shorten(built_in(), tokens).shape == (2, 4, 12)


@pytest.mark.parametrize("changes", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}])
def test_towers_that_look_further_get_whole_texts(changes):
    model = custom(**changes)
    tokens = torch.zeros(2, 77, dtype=torch.int64)
    assert text.causal_tower(model) is None
    assert text.shorten(model, tokens) is tokens


def test_words_are_what_stands_between_start_and_end():
    clip = load("tiny")
    tower = text.causal_tower(clip.model)
    tokens = clip.tokenize(["a circle", "a small red circle"])
    words = text.word_places(tower, tokens, special_ids(clip.tokenizer))
    assert words.sum(1).tolist() == [
        len(clip.tokenizer.encode(each)) for each in ("a circle", "a small red circle")
    ]
    assert not words[:, 0].any()
    assert words[0].nonzero().flatten().tolist() == list(range(1, int(tokens[0].argmax())))


def test_hidden_states_read_out_are_the_embedding():
    model = built_in()
    tower = text.causal_tower(model)
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([[7, 8, 9, 4095], [5, 4095, 0, 0]])
    hidden = text.encode_hidden(tower, tower.token_embedding(tokens))
    assert hidden.shape == (2, 12, tower.token_embedding.embedding_dim)
    assert torch.equal(text.read_out(tower, hidden, tokens), text.encode_short(model, tokens))
