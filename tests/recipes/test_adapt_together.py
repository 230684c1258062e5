"""A launch of two processes: both encode, one fits and measures."""

import json
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from omegaconf import OmegaConf
from test_adapt import SMALL, Paints, results, run_with, saved

from clipx.config import compose, resolve
from clipx.models.clip import CLIP
from clipx.recipes import adapt
from clipx.run import Run

__all__ = ["run_with", "saved"]


def settings_of(model):
    settings = resolve(compose("adapt", [f"model={model}", *SMALL, "device=cpu"], method="tip-adapter"))
    OmegaConf.set_struct(settings, False)
    settings.data = {"_target_": f"{Paints.__module__}.Paints"}
    return settings


def work(rank, port, model, folder):
    """What ``torchrun`` sets for a process, and the recipe."""
    torch.set_num_threads(1)
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1", "CLIPX_CACHE": f"{folder}/cache"}
    seen, before = 0, CLIP.encode_image

    def counted(self, images, *args, **options):
        nonlocal seen
        seen += len(images)
        return before(self, images, *args, **options)

    CLIP.encode_image = counted
    settings = settings_of(model)
    with Run.create(f"{folder}/outputs", "adapt", "tip-adapter", settings) as run:
        metrics = adapt.main(settings, run)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump({"seen": seen, "metrics": metrics}, file)
    dist.destroy_process_group()


def test_two_processes_encode_and_one_measures(run_with, saved, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "two").mkdir()
    multiprocessing.spawn(work, args=(port, saved, str(tmp_path / "two")), nprocs=2)
    first, second = (json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1))
    assert second["metrics"] == {}
    # 80 test images; 16 to learn from and 16 to choose on for each of two seeds.
    assert first["seen"] == second["seen"] == 40 + 2 * (8 + 8)
    alone, run = run_with("device=cpu")
    assert first["metrics"].keys() == alone.keys()
    assert all(abs(first["metrics"][name] - value) < 1e-6 for name, value in alone.items())
    assert results(run)["seeds"]["1"]["train_images"] == 16
