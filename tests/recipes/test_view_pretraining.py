"""Cards of views from data to model, and on from where they were stopped."""

import pytest
import torch
from safetensors.torch import load_file

from clipx.config import compose, resolve
from clipx.recipes.pretrain import main
from clipx.run import Interrupted, Run
from clipx.training.checkpoints import Checkpoints
from clipx.training.loop import Trainer

SMALL = ["model=micro", "training.steps=4", "training.batch_size=8", "training.warmup=0", "loader.workers=0"]
SMALL += ["data.size=32", "data.test_size=24", "data.validation_size=16", "data.image_size=32"]
SMALL += ["data.shapes=[circle, star]", "data.colours=[red, blue]", "training.log_every=1"]
SMALL += ["training.checkpoint_every=2", "training.evaluate_every=null"]


def trained(folder, card, *overrides, run=None):
    settings = resolve(compose("pretrain", [*SMALL, *overrides], method=card))
    run = run or Run.create(folder, "pretrain", card, settings)
    with run:
        main(settings, run)
    return run


def module_state(run):
    return load_file(Checkpoints(run.directory / "checkpoints", 2).path(4) / "model.safetensors")


@pytest.mark.parametrize("card", ["declip", "byolip"])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, card, monkeypatch):
    whole = trained(tmp_path / "whole", card)
    after = Trainer._after_step

    def stopping(self, done, *rest):
        after(self, done, *rest)
        if done == 2:
            raise Interrupted(15)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", stopping)
        with pytest.raises(Interrupted):
            trained(tmp_path / "parts", card)
    parts = trained(tmp_path / "parts", card, run=Run.open(tmp_path / "parts" / "pretrain" / card / "v0001"))
    one, other = module_state(whole), module_state(parts)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    remembered = {"declip": ".queue.rows", "byolip": ".slow_projectors.module.image.0.weight"}
    assert any(name.endswith(remembered[card]) for name in one)


def test_weak_and_strong_views_and_a_shifted_test(tmp_path):
    run = trained(
        tmp_path, "improved-baselines", "evaluation.shift={style: [sketch]}", "training.gradient_cache=4"
    )
    known = {name for record in run.metrics() for name in record}
    assert {"infonce", "projected", "projected_scale"} <= known
    assert (run.directory / "model" / "heads.safetensors").is_file()
