"""What ``clipx adapt`` writes of its fits: figures beside zero-shot, by class, by group, and the adapters."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from clipx.adapters.protocol import learnt_values
from clipx.data.fewshot import Draw
from clipx.inference.adapted import FOLDER, Adapted, save_adapted
from clipx.recipes.bench import Bench
from clipx.recipes.frozen import model_arguments, report_classes
from clipx.reports.tables import METRIC_COLUMNS, csv_text, markdown, metric_rows
from clipx.tasks.classification import Outcomes, accuracy, join, per_class
from clipx.tasks.groups import group_accuracy, per_group
from clipx.tasks.intervals import Estimate, flatten, mean_over_seeds, paired_difference


def beside_zero_shot(
    seen: Mapping[int, Outcomes], baseline: Outcomes, prefix: str = "", groups: Tensor | None = None
) -> dict[str, Estimate]:
    """Figures over seeds beside those of zero-shot, and the difference of top-1.

    One seed has the intervals of its images, several those of their mean.

    Args:
        seen: seed -> what became of the images.
        baseline: what becomes of them by zero-shot.
        prefix: of every name.
        groups: int64 ``[N]``, the group of every image, for the figures of the worst one too.
    """

    def figures(each: Outcomes) -> dict[str, Estimate]:
        own = {} if groups is None else group_accuracy(each.ranks < 1, groups)
        return {**accuracy(each), **own}

    ours = [figures(each) for each in seen.values()]
    theirs = figures(baseline)
    single = len(ours) == 1
    estimates: dict[str, Estimate] = {}
    of_groups = () if groups is None else ("worst_group", "group_gap")
    for name in ("top1", "mean_per_class", "worst_class", *of_groups, "top5"):
        values = [each[name].value for each in ours]
        estimates[f"{prefix}{name}"] = ours[0][name] if single else mean_over_seeds(values)
        estimates[f"{prefix}zero_shot_{name}"] = theirs[name]
        if name == "top1":
            gains = [value - theirs[name].value for value in values]
            right = next(iter(seen.values())).ranks < 1
            estimates[f"{prefix}difference"] = (
                paired_difference(right, baseline.ranks < 1) if single else mean_over_seeds(gains)
            )
    return estimates


def report_by_class(
    bench: Bench, seen: Mapping[int, Outcomes], baseline: Outcomes, drawn: Sequence[Draw]
) -> None:
    """The per-class table, adapted beside zero-shot, and the confusion figure over all seeds.

    Args:
        bench: whose classes they all are.
        seen: seed -> what became of the images.
        baseline: what becomes of them by zero-shot.
        drawn: the shots of every seed.
    """
    names, config = bench.data.names, bench.config
    shots = np.mean([np.bincount(each.labels, minlength=len(names)) for each in drawn], axis=0)
    all_seeds = join(seen.values())
    columns = ["class", "shots", "support", "recall", "zero_shot_recall", "difference", "precision"]
    rows = []
    for place, (ours, theirs) in enumerate(
        zip(per_class(all_seeds, names), per_class(baseline, names), strict=True)
    ):
        gain = None if ours.recall is None or theirs.recall is None else ours.recall - theirs.recall
        row = [ours.name, float(shots[place]), ours.support // len(seen), ours.recall, theirs.recall, gain]
        rows.append([*row, ours.precision, ours.confused_with])
    title = f"{bench.clip.name}: {config.method}, {config.shots or 'all'} shots"
    report_classes(bench.run, [*columns, "confused_with"], rows, all_seeds, title)


def report_by_group(
    bench: Bench, seen: Mapping[int, Outcomes], baseline: Outcomes, groups: Tensor, names: Sequence[str]
) -> None:
    """The table of groups, adapted (the mean over seeds) beside zero-shot.

    Args:
        bench: whose run it is written to.
        seen: seed -> what became of the images.
        baseline: what becomes of them by zero-shot.
        groups: int64 ``[N]``, the group of every image.
        names: of the groups.
    """
    tables = [per_group(each.ranks < 1, groups, names) for each in seen.values()]
    rows: list[list[Any]] = []
    for theirs, *ours in zip(per_group(baseline.ranks < 1, groups, names), *tables, strict=True):
        found = [row.accuracy.value for row in ours if row.accuracy is not None]
        if theirs.accuracy is None:
            rows.append([theirs.name, 0, None, None, None])
            continue
        mean, before = statistics.fmean(found), theirs.accuracy.value
        rows.append([theirs.name, theirs.support, mean, before, mean - before])
    columns = ["group", "support", "accuracy", "zero_shot_accuracy", "difference"]
    bench.run.write_text("per_group.csv", csv_text(columns, rows))


def keep_fits(bench: Bench, fitted: Mapping[int, Adapted], seen: Mapping[int, Outcomes]) -> None:
    """Write which images were drawn, every fitted adapter, and what the result depends on.

    Args:
        bench: that fitted them.
        fitted: seed -> the adapter.
        seen: seed -> what became of the images of the classes that it was fitted for.
    """
    _keep_draws(bench)
    _keep_adapters(bench, fitted)
    config, data = bench.config, bench.data
    bench.run.results(
        {
            "dataset": str(data.source.name),
            "classes": len(data.names),
            "templates": bench.templates,
            "task": config.task,
            "shots": config.shots,
            "views": config.views,
            "val": data.validation_regime,
            "leaky_parity": bool(config.leaky_parity),
            "seeds": {
                str(seed): {
                    "top1": float((outcome.ranks < 1).mean()),
                    "train_images": len(data.draws[seed]["train"]),
                    "validation_images": len(data.draws[seed].get("validation", [])),
                    **bench.seconds[seed],
                    "found": learnt_values(fitted[seed].adapter),
                }
                for seed, outcome in seen.items()
            },
        }
    )


def report_figures(bench: Bench, estimates: dict[str, Estimate]) -> dict[str, float]:
    """Write the table of figures with their intervals, say what could be done next; returns the metrics."""
    run, config = bench.run, bench.config
    run.results({"intervals": {name: [each.low, each.high] for name, each in estimates.items()}})
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    name = f"adapt/{config.method}/{run.directory.name if run.directory else 'latest'}"
    run.next = [
        f"clipx zeroshot adapter={name} image=PHOTO.jpg",
        f"clipx adapt --multirun --method zero-shot,{config.method} shots=1,2,4,8,16",
    ]
    return flatten(estimates)


def _keep_draws(bench: Bench) -> None:
    for seed, parts in bench.data.draws.items():
        text = json.dumps(parts, indent=1, ensure_ascii=False) + "\n"
        bench.run.write_text(f"shots/seed-{seed}.json", text)


def _keep_adapters(bench: Bench, fitted: Mapping[int, Adapted]) -> None:
    save_adapted(
        bench.run.path(FOLDER),
        {f"seed-{seed}": each.adapter for seed, each in fitted.items()},
        next(iter(fitted.values())),
        model=model_arguments(bench.config.model),
        method=str(bench.config.method),
    )
