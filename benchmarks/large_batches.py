"""Time and memory of large batches: the loss scored whole or in chunks, the model's step whole or cached.

    python benchmarks/large_batches.py            # losses of 8,192 and 32,768 pairs, a step of tiny
    python benchmarks/large_batches.py --quick    # does it run at all

A measurement is one forward and backward pass in a process of its own. Its memory is the peak of the process
less what it held just before; its time is processor time. Rounds interleave the contenders; a ratio is the
median over rounds of the ratio within a round, in brackets its range.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from processes import run
from throughput import spread

TIME_AIM, MEMORY_AIM = 1.3, 1.0
"""Times the dense loss; GB beside the features."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One pass to measure.

    Attributes:
        what: infonce, siglip, or step.
        pairs: of the batch.
        chunk: rows scored, or pairs encoded, at a time; 0 for all.
        width: of the embeddings.
        model: of the step.
    """

    what: str
    pairs: int
    chunk: int
    width: int
    model: str

    @property
    def name(self) -> str:
        """As the table shows it."""
        how = f"{self.chunk} at a time" if self.chunk else "whole"
        return f"{self.what:<8} {self.pairs:>6,} pairs, {how}"


def measured(case: Case) -> dict[str, float]:
    """Processor seconds and extra bytes of one pass in this process."""
    import resource
    import time

    import psutil

    warm, measure = step(case) if case.what == "step" else loss(case)
    warm()  # libraries load and threads start
    held, began = psutil.Process().memory_info().rss, time.process_time()
    measure()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "extra": peak - held}


def loss(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """A small and the whole pass of a loss over random unit rows."""
    import torch

    from clipx.objectives.infonce import chunked_info_nce, info_nce
    from clipx.objectives.siglip import sigmoid_loss

    def features(pairs: int) -> torch.Tensor:
        # In place: what is freed before the pass would hide what the pass takes.
        rows = torch.empty(pairs, case.width).normal_()
        return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True)).requires_grad_()

    torch.manual_seed(0)
    few, all_pairs = ((features(pairs), features(pairs)) for pairs in (8, case.pairs))
    scale, bias = torch.tensor(14.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)

    def scored(image: torch.Tensor, text: torch.Tensor) -> None:
        if case.what == "siglip":
            found = sigmoid_loss(image, text, scale, bias, chunk_size=case.chunk)
        elif case.chunk:
            found = chunked_info_nce(image, text, scale, chunk_size=case.chunk)
        else:
            found = info_nce(image, text, scale)
        found.backward()

    return lambda: scored(*few), lambda: scored(*all_pairs)


def step(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """A small and the whole step of a model with InfoNCE over noise, its loss chunked."""
    import torch

    from clipx.models.loading import load
    from clipx.objectives.infonce import InfoNCE
    from clipx.run import Run
    from clipx.training.loop import Trainer
    from clipx.training.module import TrainingModule
    from clipx.training.settings import LoopSettings

    torch.manual_seed(0)
    module = TrainingModule(load(case.model), {"infonce": InfoNCE(chunk_size=256)})
    side = module.clip.image_size

    def stepper(pairs: int) -> Callable[[], None]:
        batch = {
            "image": torch.empty(pairs, 3, side, side, dtype=torch.uint8).random_(0, 256),
            "text": torch.empty(pairs, 16, dtype=torch.int64).random_(1, 1000),
        }
        settings = LoopSettings(
            steps=1, batch_size=pairs, gradient_cache=min(case.chunk, pairs) or None, schedule="constant"
        )
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        trainer = Trainer(module, optimizer, settings, Run(None, writes=False))
        return lambda: trainer.fit(lambda span, positions: [batch]) and None

    return stepper(8), stepper(case.pairs)


def compare(whole: Case, chunked: Case, options: argparse.Namespace) -> list[dict]:
    """Measure a pass whole and in chunks in turns; print and return their rows."""
    found: dict[Case, list[dict[str, float]]] = {whole: [], chunked: []}
    for number in range(options.rounds):
        for case in (whole, chunked) if number % 2 else (chunked, whole):
            found[case].append(child(case))
    rows = [{**dataclasses.asdict(case), "rounds": rounds} for case, rounds in found.items()]
    times, sizes = (
        [ours[key] / theirs[key] for ours, theirs in zip(found[chunked], found[whole], strict=True)]
        for key in ("seconds", "extra")
    )
    rows[1] |= {"time_ratio": statistics.median(times), "memory_ratio": statistics.median(sizes)}
    for case, rounds in found.items():
        show(case, rounds)
    print(f"{'':<10}time {spread(times, 2)} times the whole, memory {spread(sizes, 3)}", flush=True)
    return rows


def alone(case: Case) -> dict:
    """Measure a pass that has nothing to be compared with; print and return its row."""
    rounds = [child(case)]
    show(case, rounds)
    return {**dataclasses.asdict(case), "rounds": rounds}


def child(case: Case) -> dict[str, float]:
    """``measured`` in a new process."""
    printed, _ = run([sys.executable, __file__, "--case", json.dumps(dataclasses.asdict(case))])
    return json.loads(printed.splitlines()[-1])


def show(case: Case, rounds: list[dict[str, float]]) -> None:
    """Print the medians of a case."""
    seconds, extra = (statistics.median(each[key] for each in rounds) for key in ("seconds", "extra"))
    print(f"{case.name:<40} {seconds:8.2f} s {extra / 1e9:8.3f} GB", flush=True)


def main() -> None:
    options = _options()
    if options.case:
        print(json.dumps(measured(Case(**json.loads(options.case)))))
        return
    print(f"width {options.width}, {options.threads} thread(s), {options.rounds} rounds\n", flush=True)
    rows = []
    for what in ("infonce", "siglip"):
        whole = Case(what, options.pairs, 0, options.width, options.model)
        chunked = dataclasses.replace(whole, chunk=options.chunk)
        rows += compare(whole, chunked, options)
        rows.append(alone(dataclasses.replace(chunked, pairs=options.large)))
        ratio, extra = rows[-2]["time_ratio"], rows[-1]["rounds"][0]["extra"] / 1e9
        print(
            f"{'':<10}aim {TIME_AIM} of the time: {_verdict(ratio <= TIME_AIM)}; "
            f"aim {MEMORY_AIM} GB at {options.large:,} pairs: {_verdict(extra < MEMORY_AIM)}\n"
        )
    whole = Case("step", options.step_pairs, 0, options.width, options.model)
    rows += compare(whole, dataclasses.replace(whole, chunk=options.gradient_cache), options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8192, help="where the whole loss is measured too")
    parser.add_argument("--large", type=int, default=32768, help="pairs of the loss in chunks alone")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--chunk", type=int, default=256, help="rows scored at a time")
    parser.add_argument("--model", default="tiny", help="a preset of clipx")
    parser.add_argument("--step-pairs", type=int, default=1024, help="batch of the model's step")
    parser.add_argument("--gradient-cache", type=int, default=128, help="pairs encoded at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="micro model, small batches: does it run at all")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.large, options.width, options.chunk, options.rounds = 2048, 4096, 16, 64, 1
        options.model, options.step_pairs, options.gradient_cache = "micro", 256, 32
    if not options.case:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the processes inherit it
    return options


if __name__ == "__main__":
    main()
