import copy

import fits
import pytest
import torch
from fits import CACHED, losses, new_run, pairs, stepped
from open_clip.transformer import PatchDropout

from clipx.errors import ClipxError
from clipx.models.locking import lock
from clipx.objectives.entailment import Entailment
from clipx.objectives.infonce import InfoNCE
from clipx.objectives.siglip import SigLIP
from clipx.training.encoded import Encoded
from clipx.training.gradient_cache import trained_batch_norm
from clipx.training.loop import step_seed


class Frozen(dict):
    """A mapping that a cache can tell apart."""

    def __hash__(self):
        return hash(tuple(self.items()))


EXACT = {"rtol": 1e-8, "atol": 1e-10}


def dropping():
    clip = fits.clip()
    clip.model.visual.patch_dropout = PatchDropout(0.5)
    return clip


def by_hand(before, batch, size, seeds):
    """The weights after the step, from one graph over all chunks."""
    before.train()
    parts = [{name: value.split(size)[k] for name, value in batch.items()} for k in range(len(seeds))]
    found = []
    for part, seed in zip(parts, seeds, strict=True):
        torch.manual_seed(seed)
        found.append(Encoded(before.clip, part).embeddings(("image", "text")))
    whole = {name: torch.cat([each[name] for each in found]) for name in ("image", "text")}
    before.terms(Encoded(before.clip, batch, whole))["loss"].backward()
    state = before.state_dict()
    return state | {
        name: parameter.detach() - 0.01 * parameter.grad for name, parameter in before.named_parameters()
    }


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("case", CACHED)
def test_a_cached_step_is_that_of_the_whole_batch(tmp_path, case, size):
    whole, cached = new_run(tmp_path), new_run(tmp_path)
    expected = stepped(whole, CACHED[case](), [pairs(8)])
    found = stepped(cached, CACHED[case](), [pairs(8)], gradient_cache=size)
    start = fits.clip(init_logit_bias=-2.0).double().state_dict()
    moved = fits.differing(start, expected.clip.state_dict())
    assert {"model.logit_scale", "model.visual.proj", "model.text_projection"} <= set(moved)
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), **EXACT)
    (one,), (other,) = losses(whole), losses(cached)
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("kind", [{"kind": "mixture", "tokens": 3, "heads": 2}, {"kind": "hyperbolic"}])
def test_comparisons_learn_as_of_the_whole_batch(tmp_path, kind):
    flat = {"entailment": Entailment(min_radius=0.3)} if kind["kind"] == "hyperbolic" else {}
    expected, found = (
        stepped(
            new_run(tmp_path),
            {"infonce": InfoNCE(), "siglip": SigLIP(), **flat},
            [pairs(8)],
            model=fits.clip(init_logit_bias=-2.0, comparison=Frozen(kind)),
            gradient_cache=size,
        )
        for size in (None, 3)
    )
    start = fits.clip(init_logit_bias=-2.0, comparison=Frozen(kind)).double().state_dict()
    own = [name for name in start if name.startswith("model.comparison")]
    assert {*own} <= {*fits.differing(start, expected.clip.state_dict())}
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), **EXACT)


def test_each_accumulated_batch_is_a_whole_of_its_own_and_clipping_sees_their_sum(tmp_path):
    runs = new_run(tmp_path), new_run(tmp_path)
    taken = [pairs(8, seed=0), pairs(8, seed=1)]
    expected, found = (
        stepped(run, CACHED["infonce"](), taken, accumulate=2, clip_grad_norm=0.05, gradient_cache=size)
        for run, size in zip(runs, (None, 3), strict=True)
    )
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), **EXACT)
    (one,), (other,) = map(losses, runs)
    assert one["grad_norm"] > 0.05
    assert other == pytest.approx(one, rel=1e-5)


def test_dropout_draws_the_same_both_times(tmp_path):
    batch, seeds = pairs(8), [step_seed(3, chunk, 0) for chunk in range(3)]
    made = stepped(new_run(tmp_path), {"infonce": InfoNCE()}, [batch], model=dropping(), gradient_cache=3)
    start = fits.TrainingModule(dropping().double(), {"infonce": InfoNCE()})
    expected = by_hand(copy.deepcopy(start), batch, 3, seeds)
    torch.testing.assert_close(made.module.state_dict(), expected, **EXACT)
    other = by_hand(start, batch, 3, [seed + 1 for seed in seeds])
    assert (other["clip.model.visual.proj"] - expected["clip.model.visual.proj"]).abs().max() > 1e-6


def test_batch_norm_takes_a_chunk_for_its_batch_once_and_says_so(tmp_path, micro_resnet, capsys):
    batch, seeds = pairs(8), [step_seed(3, chunk, 0) for chunk in range(2)]
    start = fits.TrainingModule(copy.deepcopy(micro_resnet).double(), {"infonce": InfoNCE()})
    assert trained_batch_norm(start)
    made = stepped(
        new_run(tmp_path),
        {"infonce": InfoNCE()},
        [batch],
        model=copy.deepcopy(micro_resnet),
        gradient_cache=4,
    )
    assert "statistics from 4 pairs (training.gradient_cache), not from 8" in capsys.readouterr().err
    # Running statistics among them, which two chunks have moved twice.
    expected = by_hand(start, batch, 4, seeds)
    assert expected["clip.model.visual.bn1.num_batches_tracked"] == 2
    torch.testing.assert_close(made.module.state_dict(), expected, **EXACT)


def test_with_its_batch_norm_locked_a_resnet_too_takes_the_step_of_the_whole_batch(
    tmp_path, micro_resnet, capsys
):
    expected, found = (
        stepped(
            new_run(tmp_path),
            {"infonce": InfoNCE()},
            [pairs(8)],
            model=lock(copy.deepcopy(micro_resnet), batch_norm=True),
            gradient_cache=size,
        )
        for size in (None, 3)
    )
    assert "statistics" not in capsys.readouterr().err
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), **EXACT)


def test_a_head_sees_the_whole_batch_whatever_the_chunks(tmp_path, capsys):
    stepped(new_run(tmp_path), CACHED["views, heads and a queue"](), [pairs(8)], gradient_cache=3)
    assert "statistics" not in capsys.readouterr().err


@pytest.mark.parametrize("locked", [{"image": True}, {"image": True, "text": True}])
def test_locked_towers_stay_as_they_are(tmp_path, locked):
    expected, found = (
        stepped(
            new_run(tmp_path),
            CACHED["siglip"](),
            [pairs(8)],
            model=lock(fits.clip(init_logit_bias=-2.0), **locked),
            gradient_cache=size,
        )
        for size in (None, 3)
    )
    torch.testing.assert_close(found.module.state_dict(), expected.module.state_dict(), **EXACT)


def test_bf16_towers_meet_float32_objectives(tmp_path):
    expected, found = (
        fits.trainer(new_run(tmp_path), steps=1, precision="bf16", gradient_cache=size) for size in (None, 8)
    )
    for made in (expected, found):
        made.fit(fits.batches(made))
    assert losses(found.run) == [pytest.approx(each, rel=1e-5) for each in losses(expected.run)]
    assert fits.differing(fits.state(expected), fits.state(found)) == []


def test_no_graph_holds_more_than_a_chunk(tmp_path):
    made = fits.trainer(new_run(tmp_path), steps=1, gradient_cache=2)
    seen = []
    made.module.clip.model.visual.register_forward_hook(
        lambda module, inputs, output: seen.append((len(output), torch.is_grad_enabled()))
    )
    made.fit(fits.batches(made))
    assert seen == [(2, False)] * 4 + [(2, True)] * 4


def test_processes_together_take_the_step_of_the_whole_batch(tmp_path):
    fits.spawn(fits.distributed_step, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, build in CACHED.items():
        expected = stepped(new_run(tmp_path), build(), [pairs(10)]).module.state_dict()
        torch.testing.assert_close(first[name], expected, **EXACT, msg=name)
        assert fits.differing(first[name], second[name]) == []
    # Of three chunks, gradients travel with the last.
    assert first["exchanges"] == [False, False, True] * len(CACHED)


def test_objectives_that_ask_for_more_than_embeddings_are_refused(tmp_path):
    with pytest.raises(ClipxError, match=r"^dropping cannot train with training.gradient_cache"):
        fits.trainer(
            new_run(tmp_path),
            objectives={"infonce": InfoNCE(), "dropping": fits.Dropping()},
            gradient_cache=4,
        )
