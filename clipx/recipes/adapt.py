"""``clipx adapt``: fit an adapter on a few labelled images a class, and measure it beside zero-shot."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clipx.adapters.zero_shot import zero_shot_of
from clipx.data.fewshot import base_and_new, harmonic_mean, validation_shots
from clipx.errors import ClipxError, did_you_mean
from clipx.features.encode import FeatureSet
from clipx.inference.adapted import Adapted
from clipx.models.clip import CLIP
from clipx.recipes.adapt_report import (
    beside_zero_shot,
    keep_fits,
    report_by_class,
    report_by_group,
    report_figures,
)
from clipx.recipes.bench import Bench
from clipx.recipes.frozen import check_skipped, class_vectors, load_pretrained
from clipx.recipes.parts import open_source
from clipx.run import Run, launched
from clipx.tasks.classification import Outcomes
from clipx.tasks.intervals import Estimate
from clipx.training.group import join_launch

TASKS = ("few-shot", "base-to-new")


def main(config: DictConfig, run: Run) -> dict[str, float]:
    """Fit and measure for every seed; returns means with 95% intervals, beside zero-shot."""
    seeds = _checked(config)
    several = launched() > 1
    if not run.writes and not several:
        return {}
    if several:
        join_launch()
    bench = Bench(load_pretrained(config.model, config.device), config, run)
    _warn_of_choice(bench)
    if several:
        few_shot = config.task == "few-shot"
        classes = bench.data.all if few_shot else base_and_new(len(bench.data.names))[0]
        bench.data.encode_together(seeds, classes)
    if not run.writes:
        return {}
    if config.task == "base-to-new":
        return _base_to_new(bench, seeds)
    return _few_shot(bench, seeds)


def _checked(config: DictConfig) -> list[int]:
    """The seeds; refuses what can be refused before anything is loaded."""
    given = config.seed if OmegaConf.is_list(config.seed) else [config.seed]
    seeds = list(dict.fromkeys(given))
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise ClipxError(f"seed={config.seed} is no seed", hint="a whole number, or several: seed=[1,2,3]")
    if config.task not in TASKS:
        raise ClipxError(f"there is no task {config.task!r}", hint=did_you_mean(str(config.task), TASKS))
    _whole("shots", config.shots, optional=True)
    _whole("views", config.views)
    if not OmegaConf.is_list(config.view_scale) or len(config.view_scale) != 2:
        raise ClipxError(f"view_scale={config.view_scale} is no range", hint="view_scale=[0.5,1.0]")
    uses_validation = validation_shots(config.val, config.shots) != 0
    if config.split not in ("test", "validation"):
        raise ClipxError(f"split={config.split} is not for measuring", hint="split=test, or validation")
    if config.split == "validation" and uses_validation:
        raise ClipxError(
            f"val={config.val} chooses on the validation split, which split=validation measures on",
            hint="val=none, or split=test",
        )
    if (config.val == "imagenet") != (config.hyperparameters is not None):
        raise ClipxError(
            "val=imagenet takes its values from another run, and only it does",
            hint="val=imagenet hyperparameters=adapt/METHOD/v0001",
        )
    if config.leaky_parity and not config.get("card", {}).get("leaky_parity"):
        raise ClipxError(
            f"leaky_parity: no choice on test is published for {config.method}",
            hint="it is there to reproduce papers that chose on test; leave it false",
        )
    return seeds


def _whole(name: str, value: Any, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ClipxError(f"{name}={value} must be a whole number of at least 1", hint=f"{name}=10")


def _warn_of_choice(bench: Bench) -> None:
    if bench.config.leaky_parity:
        bench.data.warn("leaky_parity: hyperparameters are chosen on the test images; do not report this")
    elif bench.config.val == "full":
        bench.data.warn("val=full chooses on the whole validation split, more labels than the shots")


def _few_shot(bench: Bench, seeds: Sequence[int]) -> dict[str, float]:
    data = bench.data
    test = data.test()
    baseline = bench.measured(bench.zero_shot(data.all), data.all, test)
    fitted, seen, drawn = {}, {}, []
    for seed in seeds:
        fitted[seed], shots = bench.fit(seed, data.all, test)
        seen[seed] = bench.measured(fitted[seed], data.all, test, seed)
        drawn.append(shots.drawn)
    groups = data.groups(test)
    estimates = beside_zero_shot(seen, baseline, groups=None if groups is None else groups[0])
    for name, node in bench.config.transfer.items():
        estimates |= _transferred(bench, str(name), node, fitted)
    keep_fits(bench, fitted, seen)
    report_by_class(bench, seen, baseline, drawn)
    if groups is not None:
        report_by_group(bench, seen, baseline, *groups)
    return report_figures(bench, estimates)


def _transferred(
    bench: Bench, name: str, node: DictConfig, fitted: Mapping[int, Adapted]
) -> dict[str, Estimate]:
    """The fitted adapters on other data, without any change: another domain, or other classes."""
    config, data = bench.config, bench.data
    source = open_source(node, "test")
    names = [str(each) for each in source.classes or []]
    if len(names) < 2:
        raise ClipxError(f"transfer.{name} has {len(names)} classes: nothing to tell apart")
    own = {each.casefold() for each in data.names}
    known = all(each.casefold() in own for each in names)
    templates = bench.templates if known else list(source.templates or bench.templates)
    vectors = class_vectors(bench.clip, names, templates, batch_size=config.batch_size)
    plain = Adapted(bench.clip, zero_shot_of(vectors, vectors, bench.scale), names, templates)

    def features(clip: CLIP) -> FeatureSet:
        found = data.whole(source, "test", name, clip)
        check_skipped(found, f"transfer.{name}", config.max_bad, bench.run)
        return found

    test = features(bench.clip)
    baseline = plain.outcomes(test.image, test.labels)
    seen = {}
    for seed, adapted in fitted.items():
        other = adapted.over(names, templates)
        if other is None:
            data.warn(f"{config.method} knows nothing of the classes of {name}: zero-shot stands there")
            seen[seed] = baseline
            continue
        rows = test if other.tower is bench.clip else features(other.tower)
        seen[seed] = other.outcomes(other.rows(rows), rows.labels)
    return beside_zero_shot(seen, baseline, prefix=f"{name}_")


def _base_to_new(bench: Bench, seeds: Sequence[int]) -> dict[str, float]:
    data = bench.data
    base, new = base_and_new(len(data.names))
    test = data.test()
    plain = {"base": bench.zero_shot(base), "new": bench.zero_shot(new)}
    before = {
        "base": bench.measured(plain["base"], base, test),
        "new": bench.measured(plain["new"], new, test),
    }
    fitted: dict[int, Adapted] = {}
    seen: dict[str, dict[int, Outcomes]] = {"base": {}, "new": {}}
    for seed in seeds:
        fitted[seed], _ = bench.fit(seed, base, test)
        seen["base"][seed] = bench.measured(fitted[seed], base, test, seed)
        other = fitted[seed].over([data.names[label] for label in new])
        if other is None:
            data.warn(f"{bench.config.method} knows nothing of new classes: zero-shot stands there")
            other = plain["new"]
        seen["new"][seed] = bench.measured(other, new, test)
    halves = {half: beside_zero_shot(seen[half], before[half]) for half in ("base", "new")}
    ours = harmonic_mean(halves["base"]["top1"].value, halves["new"]["top1"].value)
    theirs = harmonic_mean(halves["base"]["zero_shot_top1"].value, halves["new"]["zero_shot_top1"].value)
    keep_fits(bench, fitted, seen["base"])
    estimates = {
        f"{half}_{name}": halves[half][name]
        for half in ("base", "new")
        for name in ("top1", "zero_shot_top1", "difference")
    }
    together = {
        "harmonic_mean": ours,
        "zero_shot_harmonic_mean": theirs,
        "harmonic_difference": ours - theirs,
    }
    return {**together, **report_figures(bench, estimates)}
