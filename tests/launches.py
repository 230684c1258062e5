"""What two processes of one launch do, told as one line of JSON: run as a program by test_ranks.py.

python tests/launches.py FOLDER
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import forks

from clipx.runs import read_metrics, read_status

SMALL = ["model=micro", "data.size=64", "data.validation_size=16", "data.test_size=16", "data.image_size=32"]
SMALL += ["training.batch_size=8", "training.log_every=1", "loader.workers=0", "training.warmup=0"]
SMALL += ["training.checkpoint_every=2"]
SLURM = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
SLURM |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "gpu07", "SLURM_NTASKS": "2"}
PATIENCE = 60.0


def tasks(folder: Path, name: str, arguments: list[str]) -> list[forks.Start]:
    """Two tasks as ``srun`` starts them; what they print is in ``<name>-0.txt`` and ``<name>-1.txt``."""
    places = [{**SLURM, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    return [
        forks.Start(["pretrain", *arguments], folder / f"{name}-{rank}.txt", place)
        for rank, place in enumerate(places)
    ]


def ends(started: list[forks.Start]) -> list[int]:
    return [each.wait(PATIENCE) for each in started]


def until(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + PATIENCE
    while max((record["step"] for record in read_metrics(run)), default=0) < step:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no step {step} in {run}")
        time.sleep(0.005)


def losses(run: Path) -> dict[int, float]:
    """Step -> loss."""
    return {record["step"]: record["loss"] for record in read_metrics(run) if "loss" in record}


def main(folder: Path) -> dict[str, object]:
    forks.prepare("pretrain")
    os.environ["CLIPX_OUTPUTS"] = str(folder / "outputs")
    family = folder / "outputs" / "pretrain" / "infonce"
    found: dict[str, object] = {}

    # No data: both processes meet the same mistake.
    found["mistake"] = ends(tasks(folder, "mistake", ["data=folder", f"data.root={folder / 'nowhere'}"]))

    # One of two is killed; the other cannot go on alone.
    long = [*SMALL, "training.steps=400"]
    started = tasks(folder, "lost", long)
    until(family / "v0002", 5)
    started[1].send(signal.SIGKILL)
    found["lost"] = ends(started)
    found["lost status"] = read_status(family / "v0002")

    # Both get a SIGTERM, and go on where they were.
    started = tasks(folder, "stopped", ["--resume", "auto", *long])
    until(family / "v0002", 12)
    for each in started:
        each.send(signal.SIGTERM)
    found["stopped"] = ends(started)
    found["stopped status"] = read_status(family / "v0002")
    state = max((family / "v0002" / "checkpoints").glob("step-*")) / "state.json"
    found["ranks"] = len(json.loads(state.read_text())["ranks"])
    found["checkpoint"] = json.loads(state.read_text())["step"]
    found["last"] = max(record["step"] for record in read_metrics(family / "v0002"))

    # To the end, in a new run.
    found["whole"] = ends(tasks(folder, "whole", [*SMALL, "training.steps=2"]))
    found["whole status"] = read_status(family / "v0003")
    found["again"] = ends(tasks(folder, "again", ["--resume", "auto", *SMALL, "training.steps=2"]))
    # What two processes began, one goes on with: the last third is done again.
    found["two"] = ends(tasks(folder, "two", [*SMALL, "training.steps=6"]))
    run = family / "v0004"
    found["two losses"] = losses(run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "status.json").write_text(json.dumps({**read_status(run), "status": "interrupted"}))
    one = forks.Start(["pretrain", "--resume", "v0004"], folder / "one-0.txt")
    found["one"] = one.wait(PATIENCE)
    found["one losses"] = losses(run)

    # The other one never comes: the waiting ends when the launcher says so.
    place = {**SLURM, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    lonely = forks.Start(["pretrain", *SMALL, "training.steps=2"], folder / "lonely-0.txt", place)
    deadline = time.monotonic() + PATIENCE
    while not (family / "v0005" / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.0)
    lonely.send(signal.SIGTERM)
    found["lonely"] = lonely.wait(PATIENCE)

    found["runs"] = sorted(path.name for path in family.iterdir())
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
