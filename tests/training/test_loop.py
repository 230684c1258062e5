import copy
import itertools
import json
import os
import signal
import threading

import fits
import psutil
import pytest
import torch
from fits import batches, differing, losses, new_run, state, trainer
from open_clip.transformer import PatchDropout

from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError
from clipx.models.clip import MAX_LOG_SCALE
from clipx.run import Interrupted, Run
from clipx.training.loop import step_seed
from clipx.training.settings import LoopSettings

MICRO_STEPS = {"steps": 6, "checkpoint_every": 2}


def fitted(folder, source=None, workers=0, **settings):
    """A trainer that has run to its end, and its run."""
    run = new_run(folder)
    made = trainer(run, **settings)
    made.fit(batches(made, source, workers))
    run.end("completed")
    return made, run


# --- the step ---


def test_the_gradient_is_the_mean_of_those_of_the_micro_batches(tmp_path):
    each = []

    def note(number, batch):
        module = copy.deepcopy(before)
        module({"image": batch["image"], "text": batch["text"]})["loss"].backward()
        each.append({name: parameter.grad for name, parameter in module.named_parameters()})

    def sgd(groups):
        return torch.optim.SGD(groups, lr=1.0)

    made = trainer(new_run(tmp_path), steps=1, accumulate=3, warmup=0, optimizer=sgd, weight_decay=0.0)
    before = copy.deepcopy(made.module)
    made.fit(batches(made, poison=note))
    assert len(each) == 3
    old = dict(before.named_parameters())
    for name, parameter in made.module.named_parameters():
        mean = sum(found[name] for found in each) / 3
        torch.testing.assert_close(old[name] - parameter, mean, atol=1e-5, rtol=1e-4)


def test_losses_of_an_accumulated_step_are_means(tmp_path):
    run = new_run(tmp_path)
    made = trainer(run, steps=1, accumulate=2, lr=0.0)
    alone = trainer(new_run(tmp_path), steps=2, lr=0.0)
    made.fit(batches(made))
    alone.fit(batches(alone))
    (record,), (one, two) = losses(run), losses(alone.run)
    assert record["loss"] == pytest.approx((one["loss"] + two["loss"]) / 2)


def test_clipping_bounds_the_step_and_the_norm_is_logged(tmp_path):
    def sgd(groups):
        return torch.optim.SGD(groups, lr=1.0)

    settings = {"steps": 1, "warmup": 0, "optimizer": sgd, "weight_decay": 0.0}
    made = trainer(new_run(tmp_path), clip_grad_norm=0.01, **settings)
    before = state(made)
    made.fit(batches(made))
    after = state(made)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    assert losses(made.run)[0]["grad_norm"] > 0.01  # before it was clipped


def test_the_logit_scale_stays_within_its_bounds(tmp_path):
    made = trainer(new_run(tmp_path), steps=3, lr=1e-6, warmup=0)
    scale = made.module.clip.model.logit_scale
    starts, ends = iter([9.0, -9.0, 2.0]), []

    def note(number, batch):
        ends.append(float(scale.detach()))
        with torch.no_grad():
            scale.fill_(next(starts))

    made.fit(batches(made, poison=note))
    assert [*ends[1:], float(scale.detach())] == pytest.approx([MAX_LOG_SCALE, 0.0, 2.0], abs=1e-4)


def test_the_learning_rate_follows_the_schedule(tmp_path):
    _, run = fitted(tmp_path, steps=6, schedule="cooldown", warmup=2, cooldown=2, lr=1e-3)
    assert [record["lr"] for record in losses(run)] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 5e-4])


def test_bf16_on_a_cpu_keeps_weights_and_losses_in_float32(tmp_path):
    plain, _ = fitted(tmp_path, steps=2)
    made, run = fitted(tmp_path, steps=2, precision="bf16")
    assert {value.dtype for value in made.module.state_dict().values()} == {torch.float32}
    assert differing(state(plain), state(made))  # the towers did compute otherwise
    assert losses(run)[0]["loss"] == pytest.approx(losses(plain.run)[0]["loss"], rel=0.02)
    assert losses(run)[0]["loss"] != torch.tensor(losses(run)[0]["loss"]).bfloat16().item()
    fitted(tmp_path, steps=1)  # and the next run in this process may have another precision


def test_the_average_is_what_a_hand_computes_and_what_is_evaluated(tmp_path):
    weights, seen = [], []

    def evaluate(clip):
        seen.append({name: value.clone() for name, value in clip.state_dict().items()})
        return {"top1": 0.5}

    run = new_run(tmp_path)
    made = trainer(run, steps=4, ema=0.9, evaluate=evaluate, evaluate_every=4)

    def note(number, batch):
        weights.append({name: value.clone() for name, value in made.module.clip.state_dict().items()})

    made.fit(batches(made, poison=note))
    weights = [*weights[1:], made.module.clip.state_dict()]
    average = {name: value.clone() for name, value in weights[0].items()}
    for step in weights[1:]:
        average = {name: 0.9 * average[name] + 0.1 * step[name] for name in average}
    for name, value in made.clip.state_dict().items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
        assert torch.equal(value, seen[-1][name])
    assert made.clip is not made.module.clip
    assert torch.isfinite(made.clip.encode_text(made.clip.tokenize(["a red picture"]))).all()


def test_a_compiled_module_gives_the_same_steps(tmp_path, monkeypatch):
    plain, _ = fitted(tmp_path, steps=2)
    # Tracing is what may break; the default backend's C++ would take a minute of every test run.
    calls = []
    compiler = torch.compile

    def compile(module):
        calls.append(module)
        return compiler(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile)
    made, run = fitted(tmp_path, steps=2, compile=True)
    assert calls == [made.module]
    for record, expected in zip(losses(run), losses(plain.run), strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert made.module.state_dict().keys() == plain.module.state_dict().keys()


def test_nothing_to_train(tmp_path):
    clip = fits.clip().requires_grad_(False)
    with pytest.raises(ClipxError, match="frozen"):
        trainer(new_run(tmp_path), model=clip)


def test_a_batch_of_one_pair(tmp_path):
    with pytest.raises(ClipxError, match="at least 2 pairs") as caught:
        fitted(tmp_path, batch_size=1)
    assert "training.batch_size" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "training.steps=0"),
        ({"batch_size": 0}, "training.batch_size=0"),
        ({"accumulate": -1}, "training.accumulate=-1"),
        ({"gradient_cache": 0}, "training.gradient_cache=0"),
        ({"gradient_cache": 5}, "training.gradient_cache=5 must lie between 1 and the batch size, 4"),
        ({"gradient_cache": 1.5}, "training.gradient_cache=1.5"),
        ({"checkpoint_every": 0}, "training.checkpoint_every=0"),
        ({"evaluate_every": 1.5}, "training.evaluate_every=1.5"),
        ({"keep": 0}, "training.keep=0"),
        ({"clip_grad_norm": 0.0}, "training.clip_grad_norm=0.0"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"ema": 1.0}, "training.ema=1.0"),
        ({"max_bad": 1.1}, "training.max_bad=1.1"),
        ({"schedule": "linear"}, "schedule 'linear'"),
    ],
)
def test_settings_out_of_their_range(settings, said):
    with pytest.raises(ClipxError, match=said):
        LoopSettings(**{"steps": 10, "batch_size": 4, **settings})


def test_whole_numbers_may_be_written_as_powers_of_ten():
    assert LoopSettings(steps=1e3, batch_size=8).steps == 1000
    assert isinstance(LoopSettings(steps=1e3, batch_size=8).steps, int)


def test_seeds_differ_between_runs_steps_and_processes():
    seeds = {step_seed(*key) for key in itertools.product(range(4), range(4), range(4))}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)


# --- resume ---


def interrupted(folder, stop_before, source=None, workers=0, **settings):
    """A run that was killed before a micro-batch and then resumed to its end."""
    run = new_run(folder)
    made = trainer(run, **settings)
    with pytest.raises(fits.Killed):
        made.fit(batches(made, source, workers, stop_before=stop_before))
    run.end("interrupted")
    run = Run.open(run.directory)
    made = trainer(run, **settings)
    start = made.start
    made.fit(batches(made, source, workers))
    run.end("completed")
    return made, run, start


def dropping():
    return {"objectives": {"dropping": fits.Dropping()}}


def patch_dropout():
    clip = fits.clip()
    clip.model.visual.patch_dropout = PatchDropout(0.5)
    return {"model": clip}


EXACT = {
    "map": (fits.Pictures(), 0, dict, {}),
    "map, a worker": (fits.Pictures(), 1, dict, {}),
    "map, two workers": (fits.Pictures(), 2, dict, {}),
    "bad samples": (fits.Pictures(bad=[3, 4, 20]), 1, dict, {}),
    "stream": (fits.Stream(), 0, dict, {}),
    "stream, two workers": (fits.Stream(bad=[5]), 2, dict, {}),
    "average": (fits.Pictures(), 0, dict, {"ema": 0.8}),
    "accumulation": (fits.Pictures(), 0, dict, {"accumulate": 2}),
    "cosine, clipping": (fits.Pictures(), 0, dict, {"schedule": "cosine", "clip_grad_norm": 0.5}),
    "bf16": (fits.Pictures(), 0, dict, {"precision": "bf16"}),
    "dropout": (fits.Pictures(), 0, dropping, {}),
    "patch dropout": (fits.Pictures(), 0, patch_dropout, {"ema": 0.8}),
    "gradient cache": (fits.Pictures(), 0, patch_dropout, {"gradient_cache": 3}),
}


@pytest.mark.parametrize("case", EXACT)
def test_a_resumed_run_ends_as_the_uninterrupted_one_to_the_bit(tmp_path, case):
    source, workers, parts, settings = EXACT[case]
    settings = {"steps": 9, "checkpoint_every": 2, "log_every": 2, **settings}
    whole, whole_run = fitted(tmp_path, source, workers, **parts(), **settings)
    stop = 5 * settings.get("accumulate", 1) + settings.get("accumulate", 1) - 1
    made, run, start = interrupted(tmp_path, stop, source, workers, **parts(), **settings)
    assert start == 4
    assert differing(state(whole), state(made)) == []
    assert losses(run) == losses(whole_run)
    assert made.fitted.bad == whole.fitted.bad
    assert made.fitted.images == whole.fitted.images


def test_randomness_is_of_the_step_and_not_of_what_came_before(tmp_path):
    one, _ = fitted(tmp_path, steps=3, **dropping())
    torch.rand(1000)
    other, _ = fitted(tmp_path, steps=3, **dropping())
    assert differing(state(one), state(other)) == []


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    whole, _ = fitted(tmp_path, steps=4)
    made, _, start = interrupted(tmp_path, 2, steps=4)
    assert start == 0
    assert differing(state(whole), state(made)) == []


def test_a_run_killed_after_its_last_step_trains_no_more(tmp_path):
    run = new_run(tmp_path)
    made = trainer(run, steps=2)
    first = made.fit(batches(made))
    run.end("interrupted")
    again = trainer(Run.open(run.directory), steps=2)

    def loader(span, positions):
        raise AssertionError("no data is needed")

    assert again.fit(loader) == first
    assert first.images_per_second > 0
    assert 0 <= first.data_wait <= 1


def test_a_damaged_checkpoint_gives_way_aloud_and_the_end_is_the_same(tmp_path, capsys):
    whole, whole_run = fitted(tmp_path, steps=6, checkpoint_every=2)
    run = new_run(tmp_path)
    made = trainer(run, steps=6, checkpoint_every=2)
    with pytest.raises(fits.Killed):
        made.fit(batches(made, stop_before=5))
    run.end("interrupted")
    (run.path("checkpoints") / "step-00000004" / "training.pt").write_bytes(b"PK")
    again = trainer(Run.open(run.directory), steps=6, checkpoint_every=2)
    assert again.start == 2
    assert "warning:" in capsys.readouterr().err
    again.fit(batches(again))
    assert differing(state(whole), state(again)) == []
    assert losses(again.run) == losses(whole_run)


def test_a_checkpoint_of_another_configuration(tmp_path):
    run = new_run(tmp_path)
    made = trainer(run, steps=2)
    made.fit(batches(made))
    run.end("interrupted")
    with pytest.raises(ClipxError, match="step-00000002 does not fit"):
        trainer(Run.open(run.directory), steps=2, ema=0.9)


def test_max_bad_remembers_what_was_seen_before_a_resume(tmp_path):
    source = fits.Pictures(size=400, bad=range(0, 400, 12))
    settings = {"steps": 30, "checkpoint_every": 20, "log_every": 10, "max_bad": 0.15}
    made, _, start = interrupted(tmp_path, 21, source, **settings)
    assert start == 20
    assert len(made.fitted.bad) > 10


# --- stopping ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_a_resume_completes(tmp_path, number):
    whole, _ = fitted(tmp_path, steps=6)

    def send(at, batch):
        if at == 3:
            os.kill(os.getpid(), number)

    run = new_run(tmp_path)
    made = trainer(run, steps=6)
    with pytest.raises(Interrupted) as caught, run:
        made.fit(batches(made, poison=send))
    assert caught.value.signum == number
    assert made.checkpoints.steps() == [4]
    again = trainer(Run.open(run.directory), steps=6)
    assert again.start == 4
    again.fit(batches(again))
    assert differing(state(whole), state(again)) == []


def test_a_signal_in_the_last_step_is_heard(tmp_path):
    def send(at, batch):
        if at == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    made = trainer(new_run(tmp_path), steps=2)
    with pytest.raises(Interrupted):
        made.fit(batches(made, poison=send))
    assert made.checkpoints.steps() == [2]


def test_a_second_interrupt_ends_at_once(tmp_path):
    def send(at, batch):
        if at == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    made = trainer(new_run(tmp_path), **MICRO_STEPS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(batches(made, poison=send))
    assert made.checkpoints.steps() == [2]


def test_loader_processes_outlive_the_interrupt_that_a_terminal_sends_to_all(tmp_path):
    def send(at, batch):
        if at == 0:
            for child in psutil.Process().children():
                child.send_signal(signal.SIGINT)
                child.send_signal(signal.SIGTERM)

    made = trainer(new_run(tmp_path), steps=12)
    fitted = made.fit(batches(made, workers=2, poison=send))
    assert fitted.steps == 12


# --- what goes wrong ---


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    def poison(number, batch):
        if number == 4:
            with torch.no_grad():
                made.module.clip.model.visual.proj.fill_(float("nan"))

    made = trainer(new_run(tmp_path), steps=8, checkpoint_every=2)
    with pytest.raises(ClipxError) as caught:
        made.fit(batches(made, poison=poison))
    assert "the loss is nan at step 5" in caught.value.message
    assert str(made.checkpoints.path(4)) in caught.value.message
    assert "optim.lr" in caught.value.hint
    assert made.checkpoints.steps() == [2, 4]
    assert all(torch.isfinite(value).all() for value in made.checkpoints.newest().tensors.values())


def test_a_step_that_ruins_a_weight_under_a_finite_loss_is_not_saved(tmp_path):
    made = trainer(new_run(tmp_path), steps=4, checkpoint_every=2)
    clamp = made.module.clip.clamp_logit_scale

    def ruin():
        clamp()
        if made.fitted.steps == 3:  # in step 4, after the optimizer
            with torch.no_grad():
                made.module.clip.model.text_projection[0, 0] = float("inf")

    made.module.clip.clamp_logit_scale = ruin
    with pytest.raises(ClipxError, match=r"a weight is not finite after step 4.*step-00000002"):
        made.fit(batches(made))
    assert made.checkpoints.steps() == [2]


def test_a_gradient_that_is_not_finite_names_itself(tmp_path):
    def poison(number, batch):
        if number == 1:
            made.module.clip.model.text_projection.register_hook(lambda gradient: gradient * float("inf"))

    made = trainer(new_run(tmp_path), steps=4, clip_grad_norm=1.0)
    with pytest.raises(ClipxError, match=r"the gradient is (nan|inf) at step 2; there is no checkpoint yet"):
        made.fit(batches(made, poison=poison))


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    made = trainer(new_run(tmp_path), steps=6, checkpoint_every=2)

    def poison(number, batch):
        if number == 3:

            def fail(*_, **__):
                raise SafetensorError("I/O error: No space left on device (os error 28)")

            monkeypatch.setattr("clipx.training.checkpoints.save_file", fail)

    with pytest.raises(ClipxError) as caught:
        made.fit(batches(made, poison=poison))
    assert "step 4 could not be written" in caught.value.message
    assert "No space left on device; the checkpoint of step 2 is whole" in caught.value.message
    assert "--resume" in caught.value.hint
    assert made.checkpoints.newest().step == 2


def test_bad_samples_are_passed_over_and_remembered_by_reason(tmp_path):
    made, _ = fitted(tmp_path, fits.Pictures(bad=[3, 4, 20]), steps=10)
    assert made.fitted.bad == {str(i): f"truncated image: {i}.jpg" for i in (3, 4, 20)}


def test_too_many_bad_samples_stop_the_run(tmp_path):
    with pytest.raises(ClipxError, match=r"samples cannot be used.*training.max_bad=0.05") as caught:
        fitted(tmp_path, fits.Pictures(size=400, bad=range(0, 400, 4)), steps=20, max_bad=0.05)
    assert "training.max_bad" in caught.value.hint
    assert "truncated image" in caught.value.message


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("source", [fits.Pictures(bad=range(40)), fits.Stream(bad=range(40))])
def test_data_without_one_good_sample(tmp_path, source, workers):
    with pytest.raises(ClipxError, match=r"cannot be used|no usable sample"):
        fitted(tmp_path, source, workers, max_bad=1.0)


class Broken(fits.Pictures):
    def example(self, index):
        raise ClipxError("the archive has moved", hint="look elsewhere")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_met_by_a_loader_process_arrives_as_it_is(tmp_path, workers):
    with pytest.raises(ClipxError) as caught:
        fitted(tmp_path, Broken(), workers)
    assert (caught.value.message, caught.value.hint) == ("the archive has moved", "look elsewhere")


def test_a_loader_that_ends_early(tmp_path):
    made = trainer(new_run(tmp_path), steps=3)
    with pytest.raises(ClipxError, match="data ended before the last step"):
        made.fit(lambda span, positions: itertools.islice(batches(made)(span, positions), 2))


# --- evaluation and checkpoints ---


def test_evaluations_are_logged_and_the_best_is_kept(tmp_path):
    scores = iter([0.2, 0.8, 0.8, 0.5, 0.4])
    run = new_run(tmp_path)
    settings = {"steps": 9, "evaluate_every": 2, "checkpoint_every": 3, "keep": 1}
    made = trainer(run, evaluate=lambda clip: {"top1": next(scores)}, **settings)
    found = made.fit(batches(made))
    validation = {r["step"]: r["validation/top1"] for r in run.metrics() if "validation/top1" in r}
    assert validation == {2: 0.2, 4: 0.8, 6: 0.8, 8: 0.5, 9: 0.4}
    assert made.checkpoints.steps() == [4, 9]  # the best, though 4 is no multiple of 3, and the newest
    assert made.checkpoints.best() == 4
    assert (found.best, found.best_step, found.evaluation) == (0.8, 4, {"top1": 0.4})


def test_the_best_is_remembered_over_a_resume(tmp_path):
    def settings(scores):
        numbers = iter(scores)
        return {
            "steps": 8,
            "evaluate_every": 2,
            "checkpoint_every": 2,
            "keep": 1,
            "evaluate": lambda clip: {"top1": next(numbers)},
        }

    run = new_run(tmp_path)
    made = trainer(run, **settings([0.9, 0.1]))
    with pytest.raises(fits.Killed):
        made.fit(batches(made, stop_before=5))
    run.end("interrupted")
    again = trainer(Run.open(run.directory), **settings([0.5, 0.6]))
    again.fit(batches(again))
    assert again.checkpoints.steps() == [2, 8]
    assert again.fitted.best_step == 2


def test_a_metric_that_the_evaluation_lacks_is_told_once(tmp_path, capsys):
    made = trainer(
        new_run(tmp_path), steps=4, evaluate=lambda clip: {"top1": 0.5}, evaluate_every=4, best="top7"
    )
    made.fit(batches(made))
    assert capsys.readouterr().err.count("no metric 'top7'") == 1
    assert made.checkpoints.best() is None


def test_evaluation_leaves_the_steps_as_they_are(tmp_path):
    def evaluate(clip):
        torch.rand(100)
        clip.eval()
        return {"top1": 0.1}

    plain, _ = fitted(tmp_path, steps=4, **dropping())
    made, _ = fitted(tmp_path, steps=4, evaluate=evaluate, evaluate_every=1, **dropping())
    assert differing(state(plain), state(made)) == []


def test_every_log_every_steps_and_the_first_and_the_last(tmp_path):
    _, run = fitted(tmp_path, steps=8, log_every=3)
    assert [record["step"] for record in run.metrics()] == [1, 3, 6, 8]
    assert {"loss", "infonce", "lr", "logit_scale", "images_per_second", "data_wait"} <= run.metrics()[
        0
    ].keys()


def test_a_trainer_without_a_run_trains_and_writes_nothing(tmp_path):
    made = trainer(Run(None, writes=False), steps=2, checkpoint_every=1)
    assert made.fit(batches(made)).steps == 2
    assert list(tmp_path.iterdir()) == []


def test_a_trainer_works_in_a_thread(tmp_path):
    made = trainer(new_run(tmp_path), steps=1)
    thread = threading.Thread(target=lambda: made.fit(batches(made)))
    thread.start()
    thread.join()
    assert made.fitted.steps == 1


def test_unlabelled_is_a_label_too(tmp_path):
    class Unlabelled(fits.Pictures):
        def example(self, index):
            return {**super().example(index), "label": UNLABELLED}

    fitted(tmp_path, Unlabelled(), steps=1)


# --- several processes ---


def test_two_processes_hold_the_same_weights_and_one_writes(tmp_path):
    fits.spawn(fits.distributed_fit, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert differing(first["weights"], second["weights"]) == []
    assert (first["writes"], second["writes"]) == (True, False)
    assert first["images"] == second["images"] == 2 * 4 * 8
    assert first["evaluation"] == second["evaluation"] == {"top1": 0.0}  # all believe the first
    assert len(first["bad"]) == len(second["bad"]) >= 1
    runs = list((tmp_path / "outputs" / "pretrain" / "test").iterdir())
    assert [run.name for run in runs] == ["v0001"]
    saved = json.loads((runs[0] / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert [len(rank["positions"]) for rank in saved["ranks"]] == [1, 1]
