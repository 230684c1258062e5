import copy
import functools

import pytest
import torch
import worlds
from torch import nn
from torch.nn import functional

from clipx.data.fields import check_fields
from clipx.errors import ClipxError
from clipx.models.text import causal_tower, encode_embeddings
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.masked_language import MaskedLanguage, bert_mask, told_loss
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

TEXTS = ["a small red circle left of a large blue square", "a circle"]
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
WORDS = torch.arange(500)


def many(rows=4000, length=12):
    """Tokens of which the first is a start, and all from place 9 on are an end and padding."""
    tokens = torch.randint(500, (rows, length), generator=torch.Generator().manual_seed(0))
    words = torch.zeros_like(tokens, dtype=torch.bool)
    words[:, 1:9] = True
    return torch.where(words, tokens, 1000), words


def drawn(**shares):
    tokens, words = many()
    return (
        tokens,
        words,
        bert_mask(tokens, words, WORDS, generator=torch.Generator().manual_seed(1), **shares),
    )


def test_a_share_is_drawn_and_of_it_shares_are_masked_replaced_and_left():
    tokens, words, masked = drawn()
    asked = masked.labels != -100
    assert asked[words].float().mean().item() == pytest.approx(0.15, abs=0.006)
    assert masked.hidden[asked].float().mean().item() == pytest.approx(0.8, abs=0.015)
    changed = masked.tokens != tokens
    # A random token is at times the one that was there.
    assert changed[asked].float().mean().item() == pytest.approx(0.1 * (1 - 1 / 500), abs=0.01)
    assert not (changed & ~asked).any()
    assert not (changed & masked.hidden).any()
    assert torch.equal(masked.labels[asked], tokens[asked])


def test_special_tokens_are_never_drawn_nor_put_in():
    tokens, words, masked = drawn(share=1.0, mask_share=0.0, random_share=1.0)
    assert (masked.labels[~words] == -100).all()
    assert torch.equal(masked.tokens[~words], tokens[~words])
    assert masked.tokens[words].max() < 500
    assert (masked.tokens != tokens)[words].float().mean() > 0.8


def test_one_word_of_each_caption_is_left():
    _, words, masked = drawn(share=1.0)
    assert ((masked.labels != -100).sum(1) == 7).all()
    left = (words & (masked.labels == -100)).float().mean(0)[1:9]
    assert left.min() > 0.08  # any of the eight
    one = torch.zeros(1, 4, dtype=torch.bool)
    one[0, 2] = True
    assert (bert_mask(torch.ones(1, 4, dtype=torch.int64), one, WORDS, share=1.0).labels == -100).all()
    nothing = bert_mask(torch.ones(1, 4, dtype=torch.int64), ~one & one, WORDS, share=1.0)
    assert (nothing.labels == -100).all()


def test_draws_are_those_of_the_generator():
    _, _, one = drawn()
    _, _, same = drawn()
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    tokens, words = many()
    other = bert_mask(tokens, words, WORDS, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(one.hidden, other.hidden)


def test_the_loss_is_the_cross_entropy_of_what_is_asked():
    torch.manual_seed(0)
    head, features = nn.Linear(3, 7).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    labels = torch.tensor([[-100, 3, -100, -100], [-100, 6, 0, -100]])
    expected = functional.cross_entropy(head(features).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(told_loss(features, labels, head), expected)
    assert torch.autograd.gradcheck(
        lambda features, weight: told_loss(features, labels, lambda rows: rows @ weight),
        (features.requires_grad_(), torch.randn(3, 7, dtype=torch.float64, requires_grad=True)),
    )


def test_nothing_asked_is_a_loss_of_zero_with_a_gradient():
    head, features = nn.Linear(3, 7), torch.randn(2, 4, 3, requires_grad=True)
    loss = told_loss(features, torch.full((2, 4), -100), head)
    loss.backward()
    assert loss.item() == 0
    assert head.weight.grad.abs().sum() == features.grad.abs().sum() == 0


def test_processes_together_do_what_one_does_alone(processes):
    size = len(processes)
    towers = worlds.Told()
    loss = towers(*worlds.told(size))
    loss.backward()
    for found in processes:
        torch.testing.assert_close(found["told"]["loss"], loss.detach())
        for name, gradient in worlds.gradients(towers).items():
            torch.testing.assert_close(found["told"][name], gradient)


def test_without_a_mask_the_captions_embed_as_ever(micro):
    objective = MaskedLanguage(micro, share=0.0)
    encoded = Encoded(micro, {"text": micro.tokenize(TEXTS)})
    objective.prepare(encoded)
    torch.testing.assert_close(encoded.text("masked_text"), encoded.text())
    assert objective(encoded)["mlm"].item() == 0


def test_a_mask_stands_in_the_place_of_a_word(micro):
    objective = MaskedLanguage(micro, share=1.0, mask_share=1.0, random_share=0.0)
    tokens = micro.tokenize(TEXTS[1:])
    encoded = Encoded(micro, {"text": tokens})
    torch.manual_seed(0)
    objective.prepare(encoded)
    start, words, end = tokens[:, :1], tokens[:, 1:-1], tokens.argmax(-1)
    assert words.shape[1] > 1
    tower = causal_tower(micro.model)
    # All words are masked but one: among what could be left is what the embedding was made of.
    candidates = []
    for left in range(1, int(end)):
        embedded = tower.token_embedding(tokens).clone()
        for place in range(1, int(end)):
            if place != left:
                embedded[0, place] = objective.mask_token
        candidates.append(functional.normalize(encode_embeddings(tower, embedded, tokens)[0], dim=-1))
    assert start.item() in objective.special
    gaps = (torch.stack(candidates) - encoded.text("masked_text")).abs().max(-1).values
    assert gaps.min() < 1e-5
    assert (encoded.text("masked_text") - encoded.text()).abs().max() > 1e-3


def test_what_it_owns_trains_and_the_captions_pass_once(micro):
    clip = copy.deepcopy(micro).train()
    passes = []
    clip.model.transformer.register_forward_hook(lambda *_: passes.append(1))
    module = TrainingModule(clip, {"mlm": MaskedLanguage(clip, share=0.6)})
    assert module.needs == ["text"]
    assert module.embedded == []
    torch.manual_seed(0)
    module({"text": clip.tokenize(TEXTS)})["loss"].backward()
    assert len(passes) == 1
    own = module.objectives["mlm"]
    for parameter in (own.mask_token, own.head.weight, clip.model.token_embedding.weight):
        assert parameter.grad.abs().sum() > 0


def test_others_ask_for_the_masked_captions(micro):
    class Asking(nn.Module):
        needs = ("image", "masked_text")
        forward = staticmethod(
            lambda encoded: {"asked": (encoded.image() * encoded.text("masked_text")).sum()}
        )

    batch = {"image": PIXELS, "text": micro.tokenize(TEXTS)}
    # Whatever their order in a card.
    for order in (("asking", "mlm"), ("mlm", "asking")):
        objectives = {"asking": Asking(), "mlm": MaskedLanguage(micro)}
        module = TrainingModule(micro, {name: objectives[name] for name in order})
        assert module.needs == ["image", "text"]
        assert module(batch)["asked"].isfinite()
    with pytest.raises(ClipxError, match="needs the field 'masked_text'") as caught:
        check_fields(TrainingModule(micro, {"asking": Asking()}).needs, {"image", "text"}, "asking")
    assert "MaskedLanguage" in caught.value.hint


def test_captions_that_others_embed_too_are_embedded(micro):
    module = TrainingModule(micro, {"infonce": InfoNCE(), "mlm": MaskedLanguage(micro)})
    assert module.embedded == ["image", "text"]


def test_words_can_be_learnt_from_the_words_before_them(micro):
    clip = copy.deepcopy(micro).train()
    module = TrainingModule(clip, {"mlm": MaskedLanguage(clip, share=0.5)})
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    tokens = clip.tokenize([f"{word} {word} {word} {word}" for word in ("red", "blue", "green", "white")])
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss = module({"text": tokens})["mlm"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # ln 1024 at the start; what cannot be known is a masked first word, one of four.
    assert losses[0] > 6
    assert sum(losses[-10:]) / 10 < 1.4


def test_towers_in_bf16_meet_a_head_in_float32(micro):
    clip = copy.deepcopy(micro).train()
    module = TrainingModule(clip, {"mlm": MaskedLanguage(clip, share=0.5)})
    batch = {"text": clip.tokenize(TEXTS)}

    def loss():
        torch.manual_seed(0)
        return module(batch)["mlm"]

    exact = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = loss()
    assert rough.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"mask_share": 0.8, "random_share": 0.3}, "no shares of a whole"),
        ({"random_share": -0.1}, "no shares of a whole"),
    ],
)
def test_mistakes_are_named(micro, options, message):
    with pytest.raises(ClipxError, match=message):
        MaskedLanguage(micro, **options)


def test_a_tower_that_takes_no_embeddings_is_named(micro):
    other = copy.deepcopy(micro)
    other.model.text_pool_type = "last"
    with pytest.raises(ClipxError, match="does not show its tokens"):
        MaskedLanguage(other)
    other = copy.deepcopy(micro)
    other.tokenizer = functools.partial(micro.tokenizer)
    with pytest.raises(ClipxError, match="which of its tokens are special"):
        MaskedLanguage(other)
