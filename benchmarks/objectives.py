"""What a training step of each pretraining objective costs, beside that of InfoNCE on the same towers.

    python benchmarks/objectives.py                        # every card of pretrain, in turns with infonce
    python benchmarks/objectives.py cloob rankclip
    python benchmarks/objectives.py --quick                # does it run at all

A step is the forward and backward pass of a batch of scenes, the same again and again, without the optimizer.
"expected" is what the mathematics demands: the floating-point operations of the card's step over those of
InfoNCE's, as torch counts them (matrix products, convolutions, attention; sorting counts as nothing). Times
are processor seconds; a ratio is the median over rounds of the ratio within a round, in brackets its range.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from throughput import spread

AIM = 1.25
"""Times the expected factor."""
BASELINE = "infonce"


class Step:
    """The step of one card, ready to be taken.

    Args:
        method: the card.
        options: of the command line.
    """

    def __init__(self, method: str, options: argparse.Namespace) -> None:
        import torch

        from clipx import config
        from clipx.recipes.fitting import batches
        from clipx.recipes.parts import open_source
        from clipx.recipes.pretrain import assembled

        overrides = [f"model={options.model}", "data.size=512", "loader.workers=0"]
        overrides += [f"training.batch_size={options.batch_size}"]
        settings = config.resolve(config.compose("pretrain", overrides, method=method))
        torch.manual_seed(0)
        source = open_source(settings.data, "train")
        self.module = assembled(settings).train()
        load = batches(
            source,
            self.module.clip,
            settings,
            batch_size=options.batch_size,
            templates=["a photo of a {}."],
            needs=self.module.needs,
        )
        batch = next(iter(load((0, 1), {})))
        self.batch: dict[str, Any] = {
            name: value for name, value in batch.items() if isinstance(value, torch.Tensor)
        }

    def take(self) -> None:
        """Forward and backward."""
        self.module.zero_grad(set_to_none=True)
        self.module(dict(self.batch))["loss"].backward()

    def seconds(self) -> float:
        """Processor seconds of a step."""
        began = time.process_time()
        self.take()
        return time.process_time() - began

    def operations(self) -> int:
        """Floating-point operations of a step."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.take()
        return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="cards of pretrain; all where none is named")
    parser.add_argument("--model", default="tiny-vit", help="of all: objectives differ, towers do not")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--quick", action="store_true", help="one round of a small batch")
    options = parser.parse_args()
    if options.quick:
        options.batch_size, options.rounds = 32, 1

    import torch

    from clipx.cards import list_cards
    from clipx.config import conf_dir

    torch.set_num_threads(options.threads)
    known = [card.name for card in list_cards([conf_dir()]) if card.command == "pretrain"]
    named = [name for name in options.methods or known if name != BASELINE]
    baseline = Step(BASELINE, options)
    operations = baseline.operations()
    rows = []
    print(
        f"{options.model}, {options.batch_size} pairs, {options.threads} thread(s), {options.rounds} rounds\n"
    )
    print(f"{'':<22}{'expected':>9}  measured, times {BASELINE}")
    for name in named:
        step = Step(name, options)
        expected = step.operations() / operations
        baseline.take()
        ratios = []
        for number in range(options.rounds):
            first, second = (step, baseline) if number % 2 else (baseline, step)
            times = {id(each): each.seconds() for each in (first, second)}
            ratios.append(times[id(step)] / times[id(baseline)])
        rows.append({"method": name, "expected": expected, "ratios": ratios})
        within = "" if statistics.median(ratios) <= AIM * expected else "  over the aim"
        print(f"{name:<22}{expected:>9.2f}  {spread(ratios, 2)}{within}", flush=True)
    print(f"\naim: {AIM:g} x expected")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
