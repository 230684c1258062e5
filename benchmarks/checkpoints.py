"""How long a checkpoint holds up training: written at once, and in the background from a copy.

    python benchmarks/checkpoints.py                 # weights and AdamW of 151M parameters, as ViT-B-32 has
    python benchmarks/checkpoints.py --quick         # does it run at all

The state is of random numbers; checkpoints go to a folder on the disk of the working directory. In the
background, a round's time is until training may go on; the next round begins when the disk is done. The first
copy gets its memory from the system, the later ones have it.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from throughput import spread


def main() -> None:
    options = _options()
    import torch

    from clipx.training.background import CheckpointWriter
    from clipx.training.checkpoints import Checkpoints

    torch.set_num_threads(1)
    count = 24
    rows = max(1, options.parameters // count // 1024)

    def tensors() -> dict[str, torch.Tensor]:
        return {f"block.{place}.weight": torch.randn(rows, 1024) for place in range(count)}

    weights, optimizer = tensors(), {"exp_avg": tensors(), "exp_avg_sq": tensors()}
    times: dict[str, list[float]] = {"at once": [], "in the background": [], "until it is on disk": []}
    with tempfile.TemporaryDirectory(dir=".", prefix=".clipx-checkpoints-") as name:
        writer = CheckpointWriter(Checkpoints(Path(name), keep=1))
        for step in range(options.rounds + 1):
            began = time.perf_counter()
            writer.write_now(2 * step + 1, weights, optimizer, {})
            times["at once"].append(time.perf_counter() - began)
            began = time.perf_counter()
            writer.write(2 * step + 2, weights, optimizer, {})
            times["in the background"].append(time.perf_counter() - began)
            writer.wait()
            times["until it is on disk"].append(time.perf_counter() - began)
    size = 3 * count * rows * 1024 * 4
    print(f"{size / 1e9:.2f} GB, {options.rounds} rounds, after a first one in brackets; seconds\n")
    for what, (first, *rest) in times.items():
        print(f"{what:<20} {spread(rest, 2)}  [{first:.2f}]")
    ratios = [
        behind / whole
        for behind, whole in zip(times["in the background"][1:], times["at once"][1:], strict=True)
    ]
    print(f"\ntraining is held up for {statistics.median(ratios):.2f} of the time of writing at once")
    if options.json:
        found = {"bytes": size, "seconds": times}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=151_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="a small state, one round")
    options = parser.parse_args()
    if options.quick:
        options.parameters, options.rounds = 1_000_000, 1
    return options


if __name__ == "__main__":
    main()
