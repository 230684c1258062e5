"""Images a second of ``clipx pretrain`` with one process and with several, and what each more process adds.

    python benchmarks/scaling.py                        # 1 and 2 processes, one thread each
    python benchmarks/scaling.py --processes 1 2 4 8 --model ViT-B-32 --precision bf16 --threads 0
    python benchmarks/scaling.py --quick                # does it run at all

Each process takes the same batch ("weak scaling"), so that n of them see n times the images in a step. The
efficiency is the rate of n processes over n times the rate of one, in the same round; where cores are shared
with anybody else, that counts against it. Rates are of training alone, as the run reports them.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from processes import run
from throughput import spread


def rate(processes: int, folder: Path, options: argparse.Namespace) -> float:
    """Images a second of one run."""
    command = [sys.executable, "-m", "clipx", "pretrain", "--output-root", str(folder)]
    command += ["--processes", str(processes)] if processes > 1 else []
    command += [f"model={options.model}", f"training.steps={options.steps}", "training.warmup=0"]
    command += [f"training.batch_size={options.batch_size}", f"training.precision={options.precision}"]
    command += ["data.test_size=100", "data.validation_size=100", f"loader.workers={options.workers}"]
    environment = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    run(command, **environment)
    newest = max((folder / "pretrain" / "infonce").glob("v*"))
    return float(json.loads((newest / "results.json").read_text())["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=128, help="of a process")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of a process; 0 leaves it to torch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="micro model, a few steps")
    options = parser.parse_args()
    if options.quick:
        options.model, options.steps, options.batch_size, options.rounds = "micro", 4, 16, 1
    counts = sorted({1, *options.processes})
    rounds: list[dict[int, float]] = []
    with tempfile.TemporaryDirectory(prefix="clipx-scaling-") as name:
        for number in range(options.rounds):
            order = counts if number % 2 == 0 else counts[::-1]
            rounds.append({count: rate(count, Path(name), options) for count in order})
    print(f"{options.model}, {options.batch_size} pairs a process, {options.rounds} rounds\n")
    print(f"{'processes':>9}  {'images/s':>9}  efficiency")
    for count in counts:
        found = statistics.median(each[count] for each in rounds)
        print(
            f"{count:>9}  {found:>9,.0f}  {spread([each[count] / (count * each[1]) for each in rounds], 2)}"
        )
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
