"""Learned vectors among tokens: where they stand, and what the tower makes of them."""

import open_clip
import pytest
import torch

from clipx.errors import ClipxError
from clipx.models import prompting
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.models.prompting import (
    PromptContext,
    frozen,
    nearest_words,
    place,
    prompt_tokens,
    random_vectors,
    word_vectors,
)
from clipx.models.text import causal_tower, encode_embeddings
from clipx.models.tokenizer import small_tokenizer

NAMES = ["red", "blue ring", "green"]
VISION = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 2}


@pytest.fixture(scope="module")
def clip():
    return load("tiny", "tiny").eval().double()


def custom(**changes):
    """A CLIP whose text tower is a module of its own."""
    torch.manual_seed(0)
    text_cfg = {**TEXT, **changes}
    model = open_clip.CustomTextCLIP(16, VISION, text_cfg).eval().double()
    preprocess = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return CLIP(model, small_tokenizer(1024, 20), {"text_cfg": text_cfg}, preprocess, "custom")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "build",
    [
        lambda: load("tiny", "tiny").eval(),
        lambda: load("micro").eval().double(),
        custom,
        lambda: custom(pool_type="eos", eos_id=1023),
        lambda: custom(proj_bias=True, scale_heads=True),
    ],
)
def test_embeddings_of_the_tokens_give_encode_text_bit_for_bit(build):
    clip = build()
    tokens = clip.tokenize(["a red ring", "", "a photo of a very large green star."])
    tower = causal_tower(clip.model)
    found = encode_embeddings(tower, tower.token_embedding(tokens), tokens)
    assert torch.equal(found, clip.model.encode_text(tokens))


@pytest.mark.parametrize(
    ("position", "first", "second"),
    [
        ("end", "S v1 v2 n . E", "S v1 v2 n m . E"),
        ("middle", "S v1 n v2 . E", "S v1 n m v2 . E"),
        ("front", "S n v1 v2 . E", "S n m v1 v2 . E"),
    ],
)
def test_where_vectors_and_names_stand(clip, position, first, second):
    tokens, slots = prompt_tokens(clip, NAMES[:2], 2, position)
    encode = clip.tokenizer.encode
    assert [len(encode(name)) for name in NAMES[:2]] == [1, 2]
    table = clip.model.token_embedding.weight.detach()
    vectors = torch.stack([table.new_full((96,), 1.0), table.new_full((96,), 2.0)])[None, None]
    placed = place(vectors, table[tokens], slots)
    assert placed.shape == (1, 2, 7, 96)
    for row, (layout, name) in enumerate(zip((first, second), NAMES[:2], strict=True)):
        ids = dict(zip("nm", encode(name), strict=False))
        known = {
            "S": clip.tokenizer.sot_token_id,
            "E": clip.tokenizer.eot_token_id,
            ".": encode(".")[0],
            **ids,
        }
        for at, symbol in enumerate(layout.split()):
            expected = vectors[0, 0, int(symbol[1]) - 1] if symbol[0] == "v" else table[known[symbol]]
            assert torch.equal(placed[0, row, at], expected), (symbol, at)
        assert tokens[row].argmax() == len(layout.split()) - 1


def test_an_odd_vector_stands_behind_the_name(clip):
    _, slots = prompt_tokens(clip, ["red"], 3, "middle")
    assert slots.tolist() == [[1, 3, 4]]


@pytest.mark.parametrize(
    "build", [lambda: load("tiny", "tiny").eval().double(), custom, lambda: custom(scale_heads=True)]
)
@pytest.mark.parametrize(("words", "position", "template"), [
    ("a photo of a", "end", "a photo of a {}."),
    ("is_what", "front", "{} is what."),
    ("a b", "middle", "a {} b."),
])  # fmt: skip
def test_vectors_of_words_give_the_prompt_in_words(build, words, position, template):
    clip = build()
    vectors = word_vectors(clip, words)
    context = PromptContext(clip, NAMES, vectors, position=position)
    expected = clip.model.encode_text(clip.tokenize([template.replace("{}", name) for name in NAMES]))
    torch.testing.assert_close(context()[0], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["St.", "what?!", "Ünïcode 字"])
def test_names_that_merge_with_the_period_are_one_text(clip, name):
    context = PromptContext(clip, [name, "red"], word_vectors(clip, "a photo of a"))
    expected = clip.model.encode_text(clip.tokenize([f"a photo of a {name}.", "a photo of a red."]))
    torch.testing.assert_close(context()[0], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 4, 7])
def test_parts_give_the_same_features_and_gradients(clip, own, chunk):
    vectors = random_vectors(clip, 4, generator=generator(), prompts=2, classes=own)
    shift = torch.randn(3, 96, generator=generator(1), dtype=torch.float64, requires_grad=True)
    found = {}
    with frozen(clip):
        for size in (256, chunk):
            context = PromptContext(clip, NAMES, vectors, chunk=size)
            features = context(shift)
            assert features.shape == (3, 2, 3, 128)
            found[size] = (features, *torch.autograd.grad(features.square().sum(), (context.vectors, shift)))
    for whole, parts in zip(*found.values(), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-11)


def test_parts_are_not_kept_for_the_backward_pass(clip):
    """What is saved between forward and backward grows with the chunk, not with the classes."""

    def saved(chunk, classes):
        context = PromptContext(
            clip, NAMES[:1] * classes, random_vectors(clip, 4, generator=generator()), chunk=chunk
        )
        sizes = []
        with (
            frozen(clip),
            torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x),
        ):
            context()
        return sum(sizes)

    assert saved(8, 64) < saved(64, 64) / 3


def test_a_shift_is_added_to_every_vector(clip):
    vectors = random_vectors(clip, 3, generator=generator(), prompts=2)
    shift = torch.randn(2, 96, generator=generator(1), dtype=torch.float64)
    shifted = PromptContext(clip, NAMES, vectors)(shift)
    for row in range(2):
        alone = PromptContext(clip, NAMES, vectors + shift[row])()
        torch.testing.assert_close(shifted[row], alone, rtol=1e-9, atol=1e-11)


def test_class_specific_vectors_reach_their_class_alone(clip):
    vectors = random_vectors(clip, 2, generator=generator(), classes=3)
    context = PromptContext(clip, NAMES, vectors)
    for place_, name in enumerate(NAMES):
        alone = PromptContext(clip, [name], vectors[:, place_ : place_ + 1])()
        torch.testing.assert_close(context()[:, place_ : place_ + 1], alone, rtol=1e-9, atol=1e-11)
    context()[0, 1].sum().backward()
    assert context.vectors.grad[0, 1].abs().min() > 0
    assert context.vectors.grad[0, [0, 2]].abs().max() == 0


def test_only_the_vectors_are_parameters_and_the_model_is_put_back(clip):
    clip.train().zero_grad()
    context = PromptContext(clip, NAMES, random_vectors(clip, 2, generator=generator()))
    assert [name for name, _ in context.named_parameters()] == ["vectors"]
    assert set(context.state_dict()) == {"vectors"}
    with frozen(clip):
        assert not clip.training
        context().sum().backward()
    assert clip.training
    assert all(weight.requires_grad and weight.grad is None for weight in clip.parameters())
    clip.eval()


def test_the_given_vectors_stay_as_they_are(clip):
    given = random_vectors(clip, 2, generator=generator())
    before = given.clone()
    context = PromptContext(clip, NAMES, given)
    with torch.no_grad():
        context.vectors.add_(1)
    assert torch.equal(given, before)


def test_draws_are_named_and_of_the_published_spread(clip):
    several = random_vectors(clip, 16, generator=generator(3), prompts=4)
    assert torch.equal(several[:1], random_vectors(clip, 16, generator=generator(3)))
    assert float(several.std()) == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(several[0], several[1])


def test_the_nearest_word_of_a_words_vector_is_the_word(clip):
    vectors = word_vectors(clip, "a photo of a")
    assert nearest_words(clip, vectors[0, 0] + 1e-3) == ["a", "photo", "of", "a"]


def test_what_cannot_be_a_prompt_is_said(clip):
    vectors = random_vectors(clip, 16, generator=generator())
    for given, message in (
        ((clip, [*NAMES, "  "], vectors), "class 3 has a blank name"),
        (
            (clip, [*NAMES, "red " * 20], vectors),
            "red red .* takes 39 tokens with 16 context vectors, this model",
        ),
        ((clip, NAMES, vectors[..., 1:]), "must be .*96"),
        ((clip, NAMES, vectors.repeat(1, 2, 1, 1)), "1 or 3"),
        ((clip, [], vectors), "no class names"),
    ):
        with pytest.raises(ClipxError, match=message):
            PromptContext(*given)
    with pytest.raises(ClipxError, match="unknown position 'back'"):
        PromptContext(clip, NAMES, vectors, position="back")
    with pytest.raises(ClipxError, match="no word"):
        word_vectors(clip, " ")


@pytest.mark.parametrize(
    "build",
    [lambda: custom(no_causal_mask=True), lambda: custom(embed_cls=True), lambda: custom(pool_type="last")],
)
def test_towers_that_read_otherwise_are_refused(build):
    with pytest.raises(ClipxError, match="custom has a text tower that learned prompts cannot be put into"):
        word_vectors(build(), "a photo")


def test_a_text_tower_of_another_library_is_refused():
    other = custom()
    other.model.text = torch.nn.Linear(2, 2)
    with pytest.raises(ClipxError, match="text tower"):
        prompting.prompt_tower(other)
    foreign = custom()
    foreign.tokenizer = lambda texts: torch.zeros(len(texts), 20, dtype=torch.int64)
    with pytest.raises(ClipxError, match="custom has a tokenizer that"):
        prompting.prompt_tower(foreign)
