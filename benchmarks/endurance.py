"""Stop pretraining runs at random, start them again, and compare their end with undisturbed runs.

    python benchmarks/endurance.py                                  # 30 restarts of a queue, 100 kills
    python benchmarks/endurance.py --restarts 3 --kills 2 --steps 12

A queue starts one command, ``clipx pretrain --resume auto ...``, until it finds its run finished. The other
kills fall on runs of one process and of two, which go on with ``--resume RUN``. A process is killed with
SIGKILL, alone or with its peer, or gets a SIGTERM and 30 seconds. Every tensor that a run leaves behind, and
every number that no clock measured, must be the same to the bit as in a run that nobody disturbed; of two
processes too, whose gradients are sums of two numbers, the same in any order. The exit code is 0 if they are.
Starts are forks of a process that has imported torch; ``kills.py`` starts whole ones.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import forks
from kills import OVERRIDES, PATIENCE, checkpoints, differences, reached, run_folder, tensors

from clipx import console
from clipx.runs import read_status

AN_HOUR = 3600.0
NOTICE = 30.0
"""Seconds between SIGTERM and SIGKILL."""
A_RUN = 10
"""Kills of one run, before another begins."""


class Stop(NamedTuple):
    """How a start ended: by what, after which step, with which checkpoint, while what, and how soon."""

    processes: int
    by: str
    step: int
    checkpoint: int
    moment: str
    seconds: float


def start(root: Path, arguments: Sequence[str], processes: int) -> list[forks.Start]:
    """``clipx pretrain`` in so many processes of one launch; their output is in ``root``."""
    return [
        forks.Start(
            ["pretrain", *arguments],
            root / f"output-{place.get('RANK', '0')}.txt",
            {**place, "CLIPX_OUTPUTS": str(root)},
        )
        for place in forks.launch(processes)
    ]


def finish(started: list[forks.Start], root: Path) -> None:
    """Wait for an end that is expected to be good."""
    codes = [each.wait(AN_HOUR) for each in started]
    if any(codes):
        said = "\n".join(path.read_text(errors="replace")[-2000:] for path in root.glob("output-*.txt"))
        raise SystemExit(f"clipx ended with exit codes {codes}:\n{said}")


def stop(started: list[forks.Start], run: Path, target: int | None, draw: random.Random) -> Stop | None:
    """Stop a start after it has logged step ``target`` (None: while it gets ready), somehow.

    Returns:
        None where it had ended by itself.
    """
    deadline = time.monotonic() + PATIENCE
    while target is not None and reached(run) < target and all(each.poll() is None for each in started):
        if time.monotonic() > deadline:
            raise SystemExit(f"no step {target} within {PATIENCE:.0f} s, see {run.parents[2]}")
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 1.5 if target is None else 0.2))
    if all(each.poll() is not None for each in started):
        return None
    partial = [*run.glob("checkpoints/.step-*"), *run.glob(".model.*")]
    moment = "starting" if target is None else "writing" if partial else "running"
    by = draw.choice(["SIGTERM", "SIGKILL", "SIGKILL"] + ["SIGKILL of one"] * (len(started) > 1))
    began = time.monotonic()
    hit = [draw.choice(started)] if by == "SIGKILL of one" else started
    for each in hit:
        each.send(signal.SIGTERM if by == "SIGTERM" else signal.SIGKILL)
    late = False
    for each in started:
        if by == "SIGKILL of one" and each not in hit:
            each.send(signal.SIGTERM)  # as launchers do
        try:
            each.wait(NOTICE)
        except TimeoutError:  # as a scheduler does
            late = True
            each.send(signal.SIGKILL)
            each.wait(PATIENCE)
    found = Stop(
        processes=len(started),
        by=by,
        step=reached(run),
        checkpoint=max(checkpoints(run), default=0),
        moment=moment,
        seconds=round(time.monotonic() - began, 2),
    )
    if late:
        raise SystemExit(f"{found} did not end in {NOTICE:.0f} s")
    if by == "SIGTERM" and target is not None and found.checkpoint < found.step:
        raise SystemExit(f"{found} wrote no checkpoint of its last step")
    return found


def targets(count: int, steps: int, draw: random.Random) -> Iterator[int | None]:
    """Steps to stop after, ascending, so that every start gets as far; one in five does not get to train."""
    for number in range(count):
        first, end = number * (steps - 2) // count, (number + 1) * (steps - 2) // count
        yield None if number % 5 == 4 else draw.randrange(first, max(end, first + 1)) + 1


def disturbed(root: Path, steps: int, processes: int, count: int, seed: int, *, queue: bool) -> list[Stop]:
    """A run that is stopped ``count`` times, by the end of which it is finished."""
    draw, run = random.Random(seed), run_folder(root)
    fresh = [*OVERRIDES, f"training.steps={steps}"]
    found: list[Stop] = []
    for target in targets(count, steps, draw):
        begun = (run / "config.yaml").exists()
        if not begun:  # killed while its folder was made
            shutil.rmtree(run, ignore_errors=True)
        again = ["--resume", "auto", *fresh] if queue else ["--resume", str(run)] if begun else fresh
        if target is not None:
            target = max(target, reached(run) + 1)  # a step that this start makes
        started = start(root, again, processes)
        stopped = stop(started, run, target, draw)
        if stopped is None:
            finish(started, root)
            break
        status = read_status(run)["status"] if begun else "interrupted"
        if status == "completed":  # it was about to end, and had said so
            break
        if status not in ("interrupted", "failed"):
            raise SystemExit(f"a run that was stopped calls itself {status}")
        found.append(stopped)
    if queue:
        for _ in range(2):  # to the end, and once more, as a queue does that does not know
            finish(start(root, ["--resume", "auto", *fresh], processes), root)
    elif read_status(run)["status"] != "completed":
        begun = (run / "config.yaml").exists()
        finish(start(root, ["--resume", str(run)] if begun else fresh, processes), root)
    finished = [path.name for path in run.parent.iterdir() if read_status(path)["status"] == "completed"]
    if finished != [run.name]:
        raise SystemExit(f"{finished} are finished, not {run.name} alone")
    return found


def undisturbed(root: Path, steps: int, processes: int) -> float:
    """The run that the others are compared with; its seconds."""
    root.mkdir()
    began = time.monotonic()
    finish(start(root, [*OVERRIDES, f"training.steps={steps}"], processes), root)
    return time.monotonic() - began


def measure(folder: Path, restarts: int, kills: int, steps: int, seed: int) -> dict[str, Any]:
    """All stops, and what differs in the end, by the kind of the run."""
    queue_steps = max(steps, 10 * restarts)
    seconds = [undisturbed(folder / f"whole-{processes}", steps, processes) for processes in (1, 2)]
    wholes = {1: folder / "whole-1", 2: folder / "whole-2"}
    if queue_steps != steps:
        seconds.append(undisturbed(folder / "whole-queue", queue_steps, 1))
    found: dict[str, Any] = {"undisturbed": [round(each, 1) for each in seconds]}

    (folder / "queue").mkdir()
    stops = disturbed(folder / "queue", queue_steps, 1, restarts, seed, queue=True)
    whole = folder / "whole-queue" if queue_steps != steps else wholes[1]
    unlike = differences(run_folder(whole), run_folder(folder / "queue"), queue_steps)
    found["queue"] = {"stops": stops, "runs": 1, "differences": unlike}

    for processes in (1, 2):
        share = kills // 2 + (kills % 2 if processes == 1 else 0)
        stops, unlike, runs = [], [], 0
        while len(stops) < share:
            root = folder / f"kills-{processes}-{runs}"
            root.mkdir()
            count = min(A_RUN, share - len(stops))
            stops += disturbed(root, steps, processes, count, seed + 10 * runs + processes, queue=False)
            unlike += differences(run_folder(wholes[processes]), run_folder(root), steps)
            runs += 1
        found[f"kills, {processes}"] = {"stops": stops, "runs": runs, "differences": unlike}
    found["tensors"] = len(tensors(run_folder(wholes[1]), steps))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--restarts", type=int, default=30, help="of the queue")
    parser.add_argument("--kills", type=int, default=100, help="half of them of runs of two processes")
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="the outcome as one line of JSON")
    options = parser.parse_args()
    forks.prepare("pretrain")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(Path(folder), options.restarts, options.kills, options.steps, options.seed)
        finally:
            forks.end_all()
    parts = {name: part for name, part in found.items() if isinstance(part, dict)}
    unlike = sum(len(part["differences"]) for part in parts.values())
    if options.json:
        for part in parts.values():
            part["stops"] = [one._asdict() for one in part["stops"]]
        console.json_line(found)
        return 1 if unlike else 0
    columns = ["series", "stop", "processes", "by", "while", "after step", "goes on from", "seconds"]
    rows = [
        [name, number, one.processes, one.by, one.moment, one.step, one.checkpoint, one.seconds]
        for name, part in parts.items()
        for number, one in enumerate(part["stops"], 1)
    ]
    console.table(columns, rows, right=["stop", "processes", "after step", "goes on from", "seconds"])
    print()
    for name, part in parts.items():
        noticed = [one.seconds for one in part["stops"] if one.by == "SIGTERM"]
        slowest = f"{max(noticed):.1f} s at most" if noticed else "none"
        worst = json.dumps(part["differences"][:5]) if part["differences"] else "all bit-identical"
        compared = f"{part['runs']} runs, {found['tensors']} tensors each"
        print(f"{name}: {len(part['stops'])} stops of {compared}, {worst}; SIGTERM to end: {slowest}")
    print(f"{time.monotonic() - began:.0f} s, of which undisturbed {sum(found['undisturbed']):.0f} s")
    return 1 if unlike else 0


if __name__ == "__main__":
    sys.exit(main())
