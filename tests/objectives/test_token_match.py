import itertools
import math

import pytest
import torch
import worlds
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.objectives.token_match import (
    TokenMatch,
    assign,
    assigned_mean,
    hardest,
    one_way,
    token_similarities,
)
from clipx.training.encoded import Encoded
from clipx.training.module import TrainingModule

CASE = torch.tensor([[[0.9, 0.8, 0.1], [0.85, 0.3, 0.2]]], dtype=torch.float64)
BOTH = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("capacity", "patches", "mean"), [(1, [1, 0], 0.825), (2, [0, 0], 0.875), (math.inf, [0, 0], 0.875)]
)
def test_the_written_case(capacity, patches, mean):
    assert assign(CASE, BOTH, capacity).tolist() == [patches]
    assert assigned_mean(CASE, BOTH, capacity).item() == pytest.approx(mean)


@pytest.mark.parametrize("capacity", [1, 2])
def test_no_assignment_scores_higher_and_none_exceeds_the_room(capacity):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 4, 3, generator=generator, dtype=torch.float64)
    words = torch.rand(12, 4, generator=generator) < 0.8
    for score, valid, chosen in zip(scores, words, assign(scores, words, capacity), strict=True):
        rows = valid.nonzero()[:, 0].tolist()
        room = min(len(rows), 3 * capacity)
        best = max(
            (
                sum(float(score[row, patch]) for row, patch in zip(some, patches, strict=True))
                for some in itertools.combinations(rows, room)
                for patches in itertools.product(range(3), repeat=room)
                if max(map(patches.count, patches), default=0) <= capacity
            ),
            default=0.0,
        )
        matched = (chosen >= 0).nonzero()[:, 0].tolist()
        assert len(matched) == room
        assert {*matched} <= {*rows}
        assert torch.bincount(chosen[matched], minlength=3).max() <= capacity
        assert sum(float(score[row, chosen[row]]) for row in matched) == pytest.approx(best)


def tokens(seed=0, images=3, texts=4):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(images, 6, 5, generator=generator, dtype=torch.float64)
    words = torch.randn(texts, 4, 5, generator=generator, dtype=torch.float64)
    valid = torch.rand(texts, 4, generator=generator) < 0.7
    valid[:, 0] = True
    return functional.normalize(patches, dim=-1), functional.normalize(words, dim=-1), valid


def test_the_best_patch_of_each_word_is_filip():
    patches, words, valid = tokens()
    found = token_similarities(patches, words, valid, math.inf)
    best = torch.einsum("nld,mrd->mnlr", words, patches).amax(-1)
    torch.testing.assert_close(found, (best * valid).sum(-1) / valid.sum(-1))


def test_wanted_pairs_alone_are_scored_as_among_all():
    patches, words, valid = tokens()
    pairs = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]).bool()
    all_ = token_similarities(patches, words, valid, 1)
    torch.testing.assert_close(token_similarities(patches, words, valid, 1, pairs), all_ * pairs)


def test_gradients_of_what_was_picked():
    patches, words, valid = tokens()
    given = (patches.requires_grad_(), words.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, w: token_similarities(p, w, valid, 1), given)


def test_the_hardest_are_the_match_and_the_nearest():
    cosines = torch.tensor([[0.1, 0.9, 0.5, 0.4], [0.3, 0.2, 0.1, 0.6]])
    assert hardest(cosines, 1, offset=1).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert hardest(cosines, 9, offset=1).all()


def test_a_caption_without_a_word_counts_nothing():
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    everything = torch.ones(3, 3, dtype=torch.bool)
    loss = one_way(logits, everything, torch.tensor([True, False, True]))
    expected = functional.cross_entropy(logits, torch.arange(3), reduction="none")
    torch.testing.assert_close(loss, (expected[0] + expected[2]) / 3)
    nothing = one_way(logits, ~everything, torch.zeros(3, dtype=torch.bool))
    assert nothing.item() == 0
    nothing.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load("micro")


def batch(clip, captions):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (len(captions), 3, 32, 32), generator=generator).byte()
    return {"image": pixels, "text": clip.tokenize(captions)}


def test_special_tokens_and_padding_are_no_words(clip):
    objective = TokenMatch(clip)
    given = batch(clip, ["a red circle", "a star"])

    def loss(tokens):
        encoded = Encoded(clip, {**given, "text": tokens})
        objective.prepare(encoded)
        return objective(encoded)["token_match"]

    whole = loss(given["text"])
    torch.testing.assert_close(loss(clip.shorten(given["text"])), whole)
    empty = loss(clip.tokenize(["", ""]))
    assert empty.item() == 0
    empty.backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in clip.parameters())
    clip.zero_grad()


def test_one_pass_through_each_tower_serves_pooled_objectives_too(clip, monkeypatch):
    from clipx.objectives.infonce import InfoNCE

    module = TrainingModule(clip, {"infonce": InfoNCE(), "token_match": TokenMatch(clip)})
    given, passes = batch(clip, ["a red circle", "a star", "a ring"]), []
    for name, tower in (("image", clip.model.visual.transformer), ("text", clip.model.transformer)):
        tower.register_forward_hook(lambda *_, name=name: passes.append(name))
    losses = module(given)
    assert sorted(passes) == ["image", "text"]
    alone = TrainingModule(clip, {"infonce": InfoNCE()})(given)
    torch.testing.assert_close(losses["infonce"], alone["infonce"])
    assert losses["token_match"].item() > 0


def test_all_negatives_are_the_hardest_of_all(clip):
    torch.manual_seed(1)
    objective = TokenMatch(clip)
    given = batch(clip, ["a red circle", "a star", "a ring"])
    every = TrainingModule(clip, {"token_match": objective})(given)["loss"]
    objective.hard_negatives = 2
    torch.testing.assert_close(TrainingModule(clip, {"token_match": objective})(given)["loss"], every)
    objective.hard_negatives = 1
    assert TrainingModule(clip, {"token_match": objective})(given)["loss"] < every


def test_half_precision_towers(clip):
    torch.manual_seed(1)
    module = TrainingModule(clip, {"token_match": TokenMatch(clip)})
    given = batch(clip, ["a red circle", "a star", "a ring"])
    exact = module(given)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(given)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05)
    loss.backward()
    assert module.objectives["token_match"].patches.weight.grad.isfinite().all()
    clip.zero_grad()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"solver": "greedy"}, "no solver 'greedy'"),
        ({"capacity": 0}, "capacity is 0"),
        ({"hard_negatives": 0}, "hard_negatives is 0"),
    ],
)
def test_mistakes_are_named(clip, values, said):
    with pytest.raises(ClipxError, match=said):
        TokenMatch(clip, **values)


def test_processes_together_do_what_one_does_alone(processes):
    worlds.check_alone(processes, "token match")
