"""What each of two processes computes with spread parameters, for test_sharding.py.

Accelerate spreads parameters over GPUs alone; the processes pretend to have some. What FSDP2 does is the same
on the CPU, through gloo.
"""

import os
from pathlib import Path

import fits
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from clipx.errors import ClipxError
from clipx.models.loading import load
from clipx.run import Run
from clipx.training.group import join_launch
from clipx.training.sharding import whole

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResidualAttentionBlock",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
STEPS = {"steps": 6, "checkpoint_every": 2, "clip_grad_norm": 1.0}


def trainer(run, **settings):
    """A trainer whose parameters are spread where FSDP is asked for."""
    if "ACCELERATE_USE_FSDP" in os.environ:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return fits.trainer(run, **{**STEPS, **settings})


def fit(folder, rank, world, run=None, stop_before=None, **settings):
    """A trainer to its end, or to where it is killed."""
    made = trainer(run or _run(folder, rank), **settings)
    loader = fits.batches(made, rank=rank, world=world, stop_before=stop_before)
    if stop_before is None:
        made.fit(loader)
        made.run.end("completed")
    else:
        with pytest.raises(fits.Killed):
            made.fit(loader)
        made.run.end("interrupted")
    return made


def _run(folder, rank):
    """A run of its own for each process, so that both can look at what was saved."""
    os.environ["RANK"] = "0"
    run = fits.new_run(Path(folder, str(rank)))
    os.environ["RANK"] = str(rank)
    return run


def found(made):
    """Whole tensors of a trainer, and what its metrics.jsonl says."""
    state = {f"module.{name}": value for name, value in whole(made.module.state_dict()).items()}
    slots = whole(made.optimizer.state_dict())["state"]
    for index, values in slots.items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    return {"state": state, "losses": fits.losses(made.run), "clip": made.clip.state_dict()}


def work(rank, world, folder):
    fits._join(rank, world, folder)
    join_launch()
    out = {"plain": found(fit(folder, rank, world))}
    os.environ.update(FSDP)
    made = fit(folder, rank, world)
    out["spread"] = found(made)
    out["parts"] = [p.to_local().numel() / p.numel() for p in made.module.parameters() if p.ndim > 1]
    out["saved"] = str(made.clip.save(Path(folder, f"model-{rank}")))
    assert load(out["saved"]).state_dict().keys() == made.clip.state_dict().keys()

    killed = fit(folder, rank, world, stop_before=5).run
    os.environ["RANK"] = "0"
    run = Run.open(killed.directory)
    os.environ["RANK"] = str(rank)
    again = fit(folder, rank, world, run=run)
    out["start"], out["resumed"] = again.start, found(again)
    out["cached"] = found(fit(folder, rank, world, gradient_cache=4))
    out["refused"] = [
        message(folder, rank, ema=0.9),
        message(folder, rank, gradient_cache=4, objectives={"head": fits._head()}),
    ]
    os.environ["FSDP_VERSION"] = "1"
    out["refused"].append(message(folder, rank))
    torch.save(out, Path(folder, f"{rank}.pt"))
    made.accelerator.end_training()


def message(folder, rank, **settings):
    try:
        trainer(_run(folder, rank), **settings)
    except ClipxError as error:
        return error.message
    return None
