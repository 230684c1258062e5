"""Time of ``clipx zeroshot``, first and second run, beside the clip_benchmark package.

    pip install --no-deps --target DIR clip_benchmark
    pip install --target DIR requests                  # unless it is there
    python benchmarks/zeroshot.py --clip-benchmark DIR
    python benchmarks/zeroshot.py --quick              # clipx only

Both classify the same class folders of JPEGs with the same model, class names, prompt, batch size, loader
processes and precision, each as a fresh process that ends with its result on disk. "first" starts without
stored embeddings; clip_benchmark stores none, so that its runs are all alike. Rounds are interleaved. The
accuracies have to agree, or the times would not compare.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import material
from processes import Cost, as_json, run

HERE = Path(__file__).parent
TEMPLATE = "a photo of a {}."
DATASET = "fer2013"
"""clip_benchmark's name for plain class folders under ROOT/test; names and prompts are given to it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip-benchmark", type=Path, metavar="DIR", help="where the package is installed")
    parser.add_argument("--model", default="tiny", help="a preset of clipx; its weights are random")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=128, help="of the JPEGs, pixels a side")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="micro model, few images: does it run at all")
    options = parser.parse_args()
    if options.quick:
        options.model, options.images, options.size, options.rounds = "micro", 120, 32, 1
    with tempfile.TemporaryDirectory(prefix="clipx-zeroshot-") as name:
        times, accuracies = measure(Path(name), options)
    print(f"{options.images} images of {options.size} px, {options.model}, {options.rounds} rounds\n")
    print(f"{'':<28}median s   least s     cpu s    top-1")
    for row, costs in times.items():
        walls, cpus = [cost.wall for cost in costs], [cost.cpu for cost in costs]
        numbers = f"{statistics.median(walls):>8.2f}  {min(walls):>8.2f}  {statistics.median(cpus):>8.2f}"
        print(f"{row:<28}{numbers}  {accuracies[row]:>7.4f}")
    if len({round(value, 3) for value in accuracies.values()}) > 1:
        sys.exit("the accuracies differ: these programs did not do the same work")
    if options.json:
        options.json.write_text(as_json(times))


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, list[Cost]], dict[str, float]]:
    """What every row cost, once a round, and its top-1."""
    model = material.write_model(folder / "model", options.model)
    classes = material.write_classes(folder / "images", options.images, options.size)
    times: dict[str, list[Cost]] = {"clipx, first run": [], "clipx, second run": []}
    if options.clip_benchmark:
        times["clip_benchmark"] = []
    accuracies: dict[str, float] = {}
    for number in range(options.rounds):
        for row, costs in times.items():
            if row == "clip_benchmark":
                accuracies[row], cost = clip_benchmark(folder, model, classes, options)
            else:
                accuracies[row], cost = clipx(folder, model, folder / f"cache-{number}", options)
            costs.append(cost)
    return times, accuracies


def clipx(folder: Path, model: Path, cache: Path, options: argparse.Namespace) -> tuple[float, Cost]:
    """One run of the command; its top-1 and cost."""
    command = [
        *(sys.executable, "-m", "clipx", "zeroshot", "--json", "--output-root", str(folder / "runs")),
        *(f"model={model}", "task=classification", "data=folder", f"data.root={folder / 'images'}"),
        *(f"templates=[{json.dumps(TEMPLATE)}]", "device=cpu"),
        *(f"batch_size={options.batch_size}", f"loader.workers={options.workers}", f"cache={cache}"),
    ]
    printed, cost = run(command)
    return json.loads(printed)["top1"], cost


def clip_benchmark(
    folder: Path, model: Path, classes: list[str], options: argparse.Namespace
) -> tuple[float, Cost]:
    """One run of the package; its top-1 and cost."""
    names, prompts, result = folder / "names.json", folder / "prompts.json", folder / "result.json"
    names.write_text(json.dumps({DATASET: classes}))
    prompts.write_text(json.dumps({DATASET: [TEMPLATE.replace("{}", "{c}")]}))
    command = [
        *(sys.executable, str(HERE / "peers.py"), "clip_benchmark", "eval", "--no_amp"),
        *("--dataset", DATASET, "--dataset_root", str(folder / "images")),
        *("--task", "zeroshot_classification", "--model", f"local-dir:{model}", "--pretrained", "none"),
        *("--batch_size", str(options.batch_size), "--num_workers", str(options.workers)),
        *("--custom_classname_file", str(names), "--custom_template_file", str(prompts)),
        *("--output", str(result)),
    ]
    _, cost = run(command, PYTHONPATH=str(options.clip_benchmark), CUDA_VISIBLE_DEVICES="")
    return json.loads(result.read_text())["metrics"]["acc1"], cost


if __name__ == "__main__":
    main()
