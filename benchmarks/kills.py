"""Kill a pretraining run again and again, resume it every time, and compare its end with an undisturbed run.

    python benchmarks/kills.py                 # 20 kills
    python benchmarks/kills.py --kills 3

SIGKILL falls at random: while the process starts, steps, evaluates or writes. Every tensor of the last
checkpoint and of model/, and every number in metrics.jsonl that no clock measured, must be the same to the
bit; the exit code is 0 if they are.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipx import console
from clipx.runs import read_metrics, read_status

OVERRIDES = [
    "model=micro",
    "data.size=300",
    "data.validation_size=60",
    "data.test_size=60",
    "data.image_size=32",
    "training.batch_size=16",
    "training.ema=0.9",
    "training.log_every=1",
    "training.checkpoint_every=3",
    "training.evaluate_every=10",
    "loader.workers=1",
]
TIMED = {"images_per_second", "data_wait"}
PATIENCE = 600.0
"""Seconds until a process that makes no progress is given up."""


class Kill(NamedTuple):
    """One kill: what was to be waited for, what had been reached, and what the process was doing then."""

    target: str
    step: int
    checkpoint: int
    moment: str


def start(root: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """``clipx pretrain`` as a process of its own, its output in a file."""
    environment = {**os.environ, "CLIPX_OUTPUTS": str(root)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with (root / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "clipx", "pretrain", *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def run_folder(root: Path) -> Path:
    return root / "pretrain" / "infonce" / "v0001"


def reached(run: Path) -> int:
    """The last step in metrics.jsonl."""
    return max((record["step"] for record in read_metrics(run)), default=0)


def checkpoints(run: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def kill(process: subprocess.Popen[bytes], run: Path, target: int | None, delay: float) -> Kill | None:
    """SIGKILL ``delay`` seconds after the run has logged step ``target`` (None: after now).

    Returns:
        None where the process had ended by itself.
    """
    deadline = time.monotonic() + PATIENCE
    while target is not None and reached(run) < target and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"no step {target} within {PATIENCE:.0f} s, see {run.parents[2] / 'output.txt'}")
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    partial = [*run.glob("checkpoints/.step-*"), *run.glob(".model.*")]
    moment = "starting" if target is None else "writing" if partial else "running"
    step = reached(run)
    return Kill(
        "start" if target is None else f"step {target}", step, max(checkpoints(run), default=0), moment
    )


def finish(process: subprocess.Popen[bytes], root: Path) -> None:
    code = process.wait()
    if code:
        output = (root / "output.txt").read_text(errors="replace")
        raise SystemExit(f"clipx ended with exit code {code}:\n{output[-2000:]}")


def killed_run(root: Path, overrides: list[str], kills: int, steps: int, seed: int) -> list[Kill]:
    """A run killed ``kills`` times and resumed to its end."""
    draw = random.Random(seed)
    # Ascending, so that every process gets as far as its kill.
    targets: list[int | None] = [*sorted(draw.randrange(1, steps - 1) for _ in range(kills))]
    for place in range(4, kills, 5):
        targets[place] = None  # one in five does not even get to train
    run, arguments = run_folder(root), list(overrides)
    found: list[Kill] = []
    for target in targets:
        process = start(root, arguments)
        done = kill(process, run, target, draw.uniform(0, 3 if target is None else 0.25))
        if done is None:
            finish(process, root)
            return found
        found.append(done)
        status = read_status(run)["status"] if run.exists() else "not begun"
        if status not in ("interrupted", "not begun"):
            raise SystemExit(f"a killed run calls itself {status}")
        arguments = ["--resume", str(run)] if (run / "config.yaml").exists() else overrides
    finish(start(root, arguments), root)
    return found


def tensors(run: Path, steps: int) -> dict[str, Any]:
    """Every tensor that a run leaves behind."""
    import torch
    from safetensors.torch import load_file

    last = run / "checkpoints" / f"step-{steps:08d}"
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}", item)
        elif isinstance(value, list):
            walk(prefix, dict(enumerate(value)))
        else:
            found[prefix] = torch.as_tensor(value) if isinstance(value, int | float | torch.Tensor) else value

    walk("checkpoint", load_file(last / "model.safetensors"))
    walk("training", torch.load(last / "training.pt", weights_only=True))
    walk("model", load_file(run / "model" / "open_clip_model.safetensors"))
    return found


def differences(one: Path, other: Path, steps: int) -> list[str]:
    """What is not the same to the bit in two runs."""
    import torch

    first, second = tensors(one, steps), tensors(other, steps)
    found = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        found += [] if same else [name]
    records = [
        [{key: value for key, value in record.items() if key not in TIMED} for record in read_metrics(run)]
        for run in (one, other)
    ]
    return found + (["metrics.jsonl"] if records[0] != records[1] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="the outcome as one line of JSON")
    options = parser.parse_args()
    overrides = [*OVERRIDES, f"training.steps={options.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        for root in (whole, killed):
            root.mkdir()
        began = time.monotonic()
        finish(start(whole, overrides), whole)
        undisturbed = time.monotonic() - began
        kills = killed_run(killed, overrides, options.kills, options.steps, options.seed)
        unlike = differences(run_folder(whole), run_folder(killed), options.steps)
        compared = len(tensors(run_folder(whole), options.steps))
    if options.json:
        console.json_line({"kills": [one._asdict() for one in kills], "differences": unlike})
        return 1 if unlike else 0
    columns = ["kill", "after", "reached step", "goes on from", "while"]
    numbered = [[number, *one] for number, one in enumerate(kills, 1)]
    console.table(columns, numbered, right=["kill", "reached step", "goes on from"])
    print(
        f"\n{len(kills)} kills of {options.kills}, {compared} tensors compared, "
        + (f"{len(unlike)} differ: {json.dumps(unlike[:10])}" if unlike else "all bit-identical")
        + f" ({undisturbed:.0f} s undisturbed, {time.monotonic() - began:.0f} s in all)"
    )
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
