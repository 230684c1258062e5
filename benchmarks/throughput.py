"""Samples a second of ``clipx pretrain``, of open_clip's training entry point and of a bare PyTorch loop.

    python benchmarks/throughput.py                 # folder of JPEGs and shards, at 64 and 256 pixels
    python benchmarks/throughput.py --quick         # does it run at all

One architecture, the same files, batch size, loader processes, optimizer, clipping and augmentation for all;
the contenders take turns on the machine (see slices.py), start-up and first steps are left out. A ratio is
the median over rounds of the ratio within a round, in brackets its range.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import material
from slices import Contender, interleave

HERE = Path(__file__).parent
AIMS = {"open_clip": 1.2, "bare loop": 0.95}
_ENOUGH = 1_000_000_000


def main() -> None:
    options = _options()
    # Ended from outside, it still ends the contenders, which have sessions of their own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="clipx-throughput-") as name:
        folder = Path(name)
        model = material.write_model(folder / "model", options.model)
        print(
            f"{options.model}, batches of {options.batch_size}, {options.workers} loader process(es), "
            f"{options.threads} thread(s), {options.rounds} rounds of {options.seconds:g} s, "
            f"{os.cpu_count()} cores\n",
            flush=True,
        )
        results = []
        for size in options.sizes:
            pairs = folder / f"{size}"
            material.write_pairs(pairs, options.images, size, rows=options.images * 500)
            for kind in options.kinds:
                results += compare(kind, size, pairs, model, folder / f"{kind}-{size}", options)
        if options.scenes:
            results.append(scenes(model, folder / "scenes", options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def compare(
    kind: str, size: int, pairs: Path, model: Path, folder: Path, options: argparse.Namespace
) -> list[dict]:
    """Time the contenders on one kind of data and print their rows."""
    if kind == "shards":
        material.write_shards(pairs / "shards", pairs)
    contenders = []
    try:
        for name, command in commands(kind, pairs, model, folder, options).items():
            contenders.append(Contender(name, command, folder / name.replace(" ", "-")))
        interleave(
            contenders,
            rounds=options.rounds,
            seconds=options.seconds,
            batch_size=options.batch_size,
            warmup=options.warmup,
        )
    finally:
        for contender in contenders:
            contender.end()
    print(f"{kind}, {size} px JPEGs{'':<8}samples/s{'':<14}clipx is")
    ours = contenders[0].rates
    rows = []
    for contender in contenders:
        ratios = [mine / theirs for mine, theirs in zip(ours, contender.rates, strict=True)]
        row = {
            "data": kind,
            "pixels": size,
            "contender": contender.name,
            "samples_per_second": contender.rates,
            "ratio": statistics.median(ratios),
        }
        rows.append(row)
        verdict = ""
        if contender is not contenders[0]:
            aim = AIMS[contender.name]
            verdict = f"{spread(ratios, 2)}  aim {aim}: {'met' if row['ratio'] >= aim else 'missed'}"
        print(f"  {contender.name:<20}{spread(contender.rates):<24}{verdict}", flush=True)
    print()
    return rows


def commands(
    kind: str, pairs: Path, model: Path, folder: Path, options: argparse.Namespace
) -> dict[str, list[str]]:
    """The command lines of the contenders, clipx first."""
    if kind == "folder":
        data = ["data=folder", f"data.root={pairs}", f"data.captions={material.CAPTIONS}"]
        theirs = ["--dataset-type", "csv", "--train-data", f"{pairs / material.TRAIN_CSV}"]
        theirs += ["--csv-separator", ",", "--csv-img-key", "filepath", "--csv-caption-key", "title"]
    else:
        shards = pairs / "shards"
        data = ["data=webdataset", f"data.size={options.images}"]
        data += [f"data.{split}={shards}/{stem}-*.tar" for split, stem in SPLITS.items()]
        theirs = ["--dataset-type", "webdataset", "--train-data", f"{shards}/train-{{0000..0003}}.tar"]
        theirs += ["--dataset-resampled", "--train-num-samples", str(options.images * 500)]
    found = {
        "clipx": clipx_command(folder, model, options, data, steps=options.images * 500),
        "open_clip": [
            *(sys.executable, str(HERE / "peers.py"), "open_clip", *theirs),
            *("--model", f"local-dir:{model}", "--batch-size", str(options.batch_size)),
            *("--workers", str(options.workers), "--epochs", "1", "--precision", "fp32"),
            *("--lr", "1e-3", "--wd", "0.1", "--grad-clip-norm", "1.0"),
            *("--log-every-n-steps", "10", "--save-frequency", "0", "--logs", str(folder / "logs")),
        ],
    }
    if kind == "folder":
        table = str(pairs / material.TRAIN_CSV)
        arguments = [str(model), table, str(options.batch_size), str(options.workers)]
        found["bare loop"] = [sys.executable, str(HERE / "bare_loop.py"), *arguments]
    return found


SPLITS = {"train": "train", "validation": "val", "test": "test"}


def clipx_command(
    folder: Path, model: Path, options: argparse.Namespace, data: Sequence[str], steps: int
) -> list[str]:
    """``clipx pretrain`` without evaluations and checkpoints in between, which the others do not make."""
    return [
        *(sys.executable, str(HERE / "peers.py"), "clipx", "pretrain", "--output-root", str(folder / "runs")),
        *(f"model={model}", *data, f"training.batch_size={options.batch_size}", f"training.steps={steps}"),
        *("training.evaluate_every=null", "training.checkpoint_every=null", "optim.lr=1e-3"),
        *("augment.scale=[0.9,1.0]", "augment.ratio=[0.75,1.3333333]"),
        *("optim.weight_decay=0.1", f"loader.workers={options.workers}"),
    ]


def scenes(model: Path, folder: Path, options: argparse.Namespace) -> dict:
    """``clipx pretrain`` on the built-in data: samples/s, and the share of time spent waiting for it."""
    folder.mkdir(parents=True)
    steps = options.scenes
    data = ["data=scenes", "data.validation_size=250", "data.test_size=250", "training.log_every=5"]
    command = clipx_command(folder, model, options, data, steps)
    subprocess.run(
        command, check=True, env={**os.environ, "STAMPS": str(folder / "stamps")}, capture_output=True
    )
    (file,) = folder.glob("runs/pretrain/*/v0001/metrics.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records = [record for record in records if "images_per_second" in record]
    # Records are totals since the start; the difference of two leaves out start and first steps.
    seconds = [record["step"] * options.batch_size / record["images_per_second"] for record in records]
    waited = [record["data_wait"] * spent for record, spent in zip(records, seconds, strict=True)]
    first = next(place for place, record in enumerate(records) if record["step"] >= min(20, steps // 2))
    spent = seconds[-1] - seconds[first]
    rate = (records[-1]["step"] - records[first]["step"]) * options.batch_size / spent
    share = (waited[-1] - waited[first]) / spent
    print(f"scenes, clipx alone     {rate:,.0f} samples/s, {share:.1%} of the time waiting for data")
    return {"data": "scenes", "contender": "clipx", "samples_per_second": [rate], "data_wait": share}


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, and range in brackets."""
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a preset of clipx")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--threads", type=int, help="of the model; default: one a core that no loader needs")
    parser.add_argument("--kinds", nargs="*", default=["folder", "shards"], choices=["folder", "shards"])
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 256], help="of the JPEGs, pixels a side")
    parser.add_argument("--images", type=int, default=2048, help="how many there are")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="a contender's slice of a round")
    parser.add_argument("--warmup", type=int, default=15, help="steps before the first round")
    parser.add_argument("--scenes", type=int, default=60, help="steps on built-in data; 0 for none")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="micro model, seconds: does it run at all")
    options = parser.parse_args()
    if options.quick:
        options.model, options.batch_size, options.images = "micro", 16, 64
        options.sizes, options.rounds, options.seconds, options.warmup = [32], 2, 0.3, 3
        options.scenes = min(options.scenes, 10)
    if options.threads is None:
        options.threads = max(1, (os.cpu_count() or 1) - options.workers)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the contenders inherit it
    return options


if __name__ == "__main__":
    main()
