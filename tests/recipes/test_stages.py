import json
import signal

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.recipes.pretrain import main
from clipx.recipes.stages import stages_of
from clipx.run import Interrupted, Run
from clipx.training.loop import Trainer

SMALL = [
    "model=micro",
    "training.batch_size=8",
    "training.warmup=0",
    "loader.workers=0",
    "training.log_every=1",
]
SMALL += ["data.size=32", "data.test_size=8", "data.validation_size=8", "data.image_size=32"]
SMALL += ["data.shapes=[circle,star]", "data.colours=[red,blue]", "evaluation.limit=8"]
STAGES = "stages=[{training.steps:3},{training.steps:4,lock.image:true,optim:{lr:1e-4}}]"


def settings_of(*overrides):
    return resolve(compose("pretrain", [*SMALL, *overrides]))


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


@pytest.fixture
def begin(tmp_path):
    def start(*overrides):
        settings = settings_of(*overrides)
        return settings, Run.create(tmp_path, "pretrain", "infonce", settings)

    return start


@pytest.fixture
def run_with(begin):
    def start(*overrides):
        settings, run = begin(*overrides)
        with run:
            return main(settings, run), run

    return start


def test_a_stage_is_the_run_but_for_what_it_changes():
    settings = settings_of(STAGES)
    first, second = stages_of(settings)
    assert (first.seed, second.seed) == (0, 1)
    assert (first.training.steps, second.training.steps) == (3, 4)
    assert (first.lock.image, second.lock.image) == (False, True)
    assert (first.optim.lr, second.optim.lr) == (settings.optim.lr, 1e-4)
    assert first.stages == second.stages == []
    assert stages_of(settings_of("stages=[{seed:7}]"))[0].seed == 7


@pytest.mark.parametrize(
    ("stages", "said", "hint"),
    [
        ("[{training.step:3}]", "no 'training.step'", "training.steps"),
        ("[{},{optim.lrate:3}]", "stage 2", "optim.lr"),
        ("[3]", "stage 1 is 3", "stages="),
        ("[{training.batch_size:abc}]", "batch_size=abc: expected", "batch_size=8"),
        ("[{stages:[{seed:1}]}]", "stages of its own", "one list"),
    ],
)
def test_what_is_no_stage(stages, said, hint):
    with pytest.raises(ClipxError, match=said) as caught:
        stages_of(settings_of(f"stages={stages}"))
    assert hint in caught.value.hint


def test_each_stage_goes_on_from_the_one_before(run_with):
    metrics, run = run_with(STAGES)
    one, two = (run.directory / "stages" / number for number in "12")
    before, after = weights(one / "model"), weights(two / "model")
    locked = {name for name in before if name.startswith("visual.")}
    assert all(torch.equal(before[name], after[name]) for name in locked)
    assert not torch.equal(before["text_projection"], after["text_projection"])
    assert {name: value.tolist() for name, value in weights(run.directory / "model").items()} == {
        name: value.tolist() for name, value in after.items()
    }
    found = json.loads((run.directory / "results.json").read_text())
    assert [each["steps"] for each in found["stages"]] == [3, 4]
    assert found["stages"][1]["metrics"] == metrics
    # The same as two runs, the second from the model of the first.
    _, first = run_with("training.steps=3")
    assert all(torch.equal(value, before[name]) for name, value in weights(first.path("model")).items())
    _, second = run_with(
        "training.steps=4", "lock.image=true", "optim.lr=1e-4", "seed=1", f"model.pretrained={one / 'model'}"
    )
    assert all(torch.equal(value, after[name]) for name, value in weights(second.path("model")).items())


def test_a_stage_may_change_the_resolution_and_the_length_of_texts(run_with):
    small, large = "{training.steps:2}", "{training.steps:2,model.image_size:64,data.image_size:64}"
    _, run = run_with(f"stages=[{small},{large}]", "model.context_length=16")
    clip = load(str(run.directory / "model"))
    assert isinstance(clip, CLIP)
    assert clip.image_size == 64
    assert load(str(run.directory / "stages" / "1" / "model")).image_size == 32


@pytest.mark.parametrize("stopped", [2, 5])
def test_a_run_that_stops_in_a_stage_ends_as_if_it_had_not(begin, run_with, monkeypatch, capsys, stopped):
    _, whole = run_with(STAGES)
    step, taken = Trainer._step, []

    def counted(trainer, number, batches):
        taken.append(number)
        if len(taken) == stopped:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, number, batches)

    monkeypatch.setattr(Trainer, "_step", counted)
    settings, run = begin(STAGES)
    with pytest.raises(Interrupted), run:
        main(settings, run)
    with Run.open(run.directory) as again:
        main(OmegaConf.load(run.directory / "config.yaml"), again)
    assert ("stage 1 of 2 is finished" in capsys.readouterr().err) == (stopped > 3)
    assert len(taken) == 7
    expected = weights(whole.directory / "model")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run.directory / "model").items())
