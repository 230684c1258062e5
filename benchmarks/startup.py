"""How long until help is there, the configuration, the first training step is done; beside open_clip's entry.

    python benchmarks/startup.py            # five rounds
    python benchmarks/startup.py --quick

Fresh processes, interleaved in rounds. The least wall time is what the machine can do, the median what one
meets; processor seconds (of training programs without their killed loaders) hold also on a busy machine.
"""

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import material
import throughput
from processes import Cost, as_json, run
from slices import stamps_in

CLIPX = [sys.executable, "-m", "clipx"]
HELP_AIM = 0.3
"""Seconds that ``clipx --help`` may take."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="tiny", help="a preset of clipx")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name holds one of these texts")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="micro model, one round: does it run at all")
    options = parser.parse_args()
    if options.quick:
        options.model, options.rounds = "micro", 1
    options.batch_size, options.workers = (16 if options.quick else 128), 1
    options.images = 4 * options.batch_size
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # still ends what it started
    with tempfile.TemporaryDirectory(prefix="clipx-startup-") as name:
        table = measure(Path(name), options)
    print(f"{'':<44}median s   least s     cpu s")
    for row, costs in table.items():
        walls = [cost.wall for cost in costs]
        cpu = statistics.median(cost.cpu for cost in costs)
        aim = ""
        if row == "clipx --help":
            aim = f"   aim {HELP_AIM}: {'met' if min(walls) < HELP_AIM else 'missed'}"
        print(f"{row:<44}{statistics.median(walls):>8.2f}  {min(walls):>8.2f}  {cpu:>8.2f}{aim}")
    if options.json:
        options.json.write_text(as_json(table))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """What every row cost, once a round."""
    model = material.write_model(folder / "model", options.model)
    pairs = folder / "pairs"
    material.write_pairs(pairs, options.images, 64, rows=options.images)
    tasks: dict[str, Callable[[], Cost]] = {
        "python -c pass": lambda: ended([sys.executable, "-c", "pass"]),
        "clipx --help": lambda: ended([*CLIPX, "--help"]),
        "clipx pretrain --help": lambda: ended([*CLIPX, "pretrain", "--help"]),
        "clipx pretrain --show-config": lambda: ended([*CLIPX, "pretrain", "--show-config"]),
        "python -c 'import torch, open_clip'": lambda: ended(
            [sys.executable, "-c", "import torch, open_clip"]
        ),
        "open_clip_train.main --help": lambda: ended(
            [sys.executable, "-m", "open_clip_train.main", "--help"]
        ),
    }
    number = iter(range(10**6))

    def first_step(name: str) -> Callable[[], Cost]:
        def measured() -> Cost:
            scratch = folder / f"{next(number)}"
            found = throughput.commands("folder", pairs, model, scratch, options)
            if name == "scenes":
                command = throughput.clipx_command(scratch, model, options, ["data=scenes"], steps=1000)
            else:
                command = found[name]
            return time_to_first_step(command, scratch)

        return measured

    tasks["first step done: clipx, scenes"] = first_step("scenes")
    tasks["first step done: clipx, folder"] = first_step("clipx")
    tasks["first step done: open_clip, same folder"] = first_step("open_clip")
    tasks["first step done: bare loop, same folder"] = first_step("bare loop")
    if options.only:
        tasks = {name: task for name, task in tasks.items() if any(part in name for part in options.only)}
    table: dict[str, list[Cost]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, task in tasks.items():
            table[name].append(task())
    return table


def ended(command: list[str]) -> Cost:
    """What a program costs."""
    return run(command)[1]


def time_to_first_step(command: list[str], folder: Path) -> Cost:
    """What it costs from the start of a training program until its loop asks for the second batch."""
    folder.mkdir(parents=True)
    stamps, log = folder / "stamps", folder / "log.txt"
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "STAMPS": str(stamps)},
        )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        while len(stamps_in(stamps)) < 2:
            if process.poll() is not None or time.monotonic() - began > 300:
                sys.exit(f"{command} did not train:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(stamps_in(stamps)[1] - began, cpu)


if __name__ == "__main__":
    main()
