"""``clipx adapt``: fit an adapter on a few labelled images a class, and measure it beside zero-shot."""

import inspect
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clipx import console
from clipx.adapters import protocol, saving
from clipx.adapters.zero_shot import zero_shot_of
from clipx.config import build
from clipx.data.fewshot import (
    Draw,
    base_and_new,
    draw,
    harmonic_mean,
    labels_of,
    relabelled,
    validation_shots,
)
from clipx.data.shots import ShotImages
from clipx.data.transforms import STRETCHED, TrainTransform
from clipx.errors import ClipxError, did_you_mean
from clipx.features.encode import FeatureSet
from clipx.features.projection import image_projection
from clipx.features.together import encode_together
from clipx.features.views import Chosen, Views
from clipx.inference.adapted import FOLDER, Adapted, describe, rows_of, save_adapted
from clipx.models.clip import CLIP
from clipx.models.comparison import check_cosine
from clipx.recipes.frozen import (
    check_skipped,
    class_vectors,
    encoded,
    load_pretrained,
    model_arguments,
    progress,
    report_classes,
    templates_of,
)
from clipx.recipes.parts import open_source
from clipx.recipes.sharing import kept
from clipx.reports.tables import METRIC_COLUMNS, csv_text, markdown, metric_rows
from clipx.run import Run, launched
from clipx.runs import find_run
from clipx.tasks.classification import Outcomes, accuracy, join, per_class
from clipx.tasks.groups import group_accuracy, per_group
from clipx.tasks.intervals import Estimate, flatten, mean_over_seeds, paired_difference
from clipx.training.group import join_launch

TASKS = ("few-shot", "base-to-new")
_NAMED = 8
"""Classes that a warning names before it counts."""


def main(config: DictConfig, run: Run) -> dict[str, float]:
    """Fit and measure for every seed; returns means with 95% intervals, beside zero-shot."""
    seeds = _checked(config)
    several = launched() > 1
    if not run.writes and not several:
        return {}
    if several:
        join_launch()
    bench = _Bench(load_pretrained(config.model, config.device), config, run)
    if several:
        bench.encode_together(seeds)
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


@dataclass(frozen=True)
class _Shots:
    """Drawn images, encoded: which they are, and the rows they gave (several an image where it has views)."""

    drawn: Draw
    features: FeatureSet
    labels: Tensor
    groups: Tensor

    @property
    def ids(self) -> list[str]:
        _, first = np.unique(self.groups.numpy(), return_index=True)
        return [self.features.ids[place] for place in first.tolist()]


class _Bench:
    """One model on one data set: what is drawn, encoded, fitted and looked at, for whichever classes."""

    def __init__(self, clip: CLIP, config: DictConfig, run: Run) -> None:
        self.clip, self.config, self.run = clip, config, run
        works = "clipx zeroshot, and clipx probe --method linear-probe-full, take any comparison"
        check_cosine(clip.comparison, f"the adapter {config.method}", works)
        self.needs = _needs(config.adapter)
        self.bank = "pre_projection" if self.needs == "pre_projection" else "raw"
        if self.needs == "pre_projection":
            image_projection(clip)  # says at once where there is none
        self.source = open_source(config.data, "train")
        self.labels = labels_of(self.source)
        self.names = [str(name) for name in config.labels or self.source.classes or []]
        if len(self.names) < 2:
            raise ClipxError(
                f"there are {len(self.names)} classes: nothing to tell apart", hint="two classes or more"
            )
        if self.labels.max() >= len(self.names):
            raise ClipxError(
                f"the data has label {int(self.labels.max())}, but names for {len(self.names)} classes only",
                hint="one name a class: labels=[...], or data.class_names",
            )
        self.templates = templates_of(config, self.source)
        self.classifier = class_vectors(
            clip, self.names, self.templates, batch_size=config.batch_size, precision=config.precision
        )
        self.scale = float(clip.logit_scale.detach())
        self.given = _found_elsewhere(config, run) if run.writes else {}
        self.together = False
        _build(config.adapter, 0, self.given)  # wrong hyperparameters are told before anything is encoded
        self.all = list(range(len(self.names)))
        self._warned: set[str] = set()
        self._validation: tuple[Any, NDArray[np.int64]] | None = None
        self.draws: dict[int, dict[str, Any]] = {}
        self.seconds: dict[int, dict[str, float]] = {}
        self.validation_regime = str(config.val)
        if config.leaky_parity:
            self.validation_regime = "leaky"
            self.warn("leaky_parity: hyperparameters are chosen on the test images; do not report this")
        if config.val == "full" and not config.leaky_parity:
            self.warn("val=full chooses on the whole validation split, more labels than the shots")

    def encode_together(self, seeds: Sequence[int]) -> None:
        """Encode all that few-shot learning takes with all processes of a launch; collective.

        Fitting is left to one of them: the others need not wait for it.
        """
        classes = self.all if self.config.task == "few-shot" else base_and_new(len(self.names))[0]
        self.together, began = True, time.monotonic()
        test = self.test()
        for seed in seeds:
            self.shots(seed, classes)
            self.validation(seed, classes, test)
        self.together = False
        if self.run.writes:
            seconds = console.duration(time.monotonic() - began)
            console.info(f"encoded by {launched()} processes in {seconds}")

    def warn(self, message: str) -> None:
        """Say something once a run."""
        if self.run.writes and message not in self._warned:
            self._warned.add(message)
            console.warn(message)

    def test(self, clip: CLIP | None = None) -> FeatureSet:
        """The split that is measured on, embedded by this model or by an adapted tower."""
        split = self.config.split
        source = open_source(self.config.data, split)
        bank = "image" if self.needs != "pre_projection" else self.bank
        if self.together:
            self._share(source, split=split, bank=bank, limit=self.config.limit)
        features = encoded(
            clip or self.clip,
            source,
            self.config,
            split=split,
            bank=bank,
            limit=self.config.limit,
            what=f"{split} images",
            announce=not self.together,
        )
        if not self.together:
            check_skipped(features, split, self.config.max_bad, self.run)
        return features

    def _share(self, source: Any, *, split: str, bank: str, limit: int | None = None) -> None:
        config = self.config
        with progress("encoding") as told:
            encode_together(
                self.clip,
                source,
                split=split,
                bank=bank,
                root=None if config.cache is None else Path(config.cache),
                batch_size=config.batch_size,
                workers=config.loader.workers,
                precision=config.precision,
                limit=limit,
                progress=told,
            )

    def groups(self, test: FeatureSet) -> tuple[Tensor, list[str]] | None:
        """The group of every labelled image that is measured on, and the names; None for no groups."""
        names = list(getattr(self.source, "group_names", []))
        if len(names) < 2:
            return None
        source = open_source(self.config.data, self.config.split)
        return torch.from_numpy(source.groups)[test.index][test.labels >= 0], names

    def shots(self, seed: int, classes: Sequence[int]) -> _Shots:
        """Training images of these classes, encoded in as many views as are asked for."""
        config = self.config
        return self._encode_drawn(
            "train", self.source, self.labels, config.shots, seed, classes, config.views
        )

    def validation(self, seed: int, classes: Sequence[int], test: FeatureSet) -> tuple[Tensor, Tensor] | None:
        """Rows and labels to choose hyperparameters on, as the regime has it; None for none."""
        if self.config.leaky_parity:
            own = torch.from_numpy(relabelled(_known(test.labels, len(self.names)), classes))
            return rows_of(test, self.needs)[own >= 0], own[own >= 0]
        shots = validation_shots(self.config.val, self.config.shots)
        if shots == 0:
            return None
        if self._validation is None:
            try:
                source = open_source(self.config.data, "validation")
                self._validation = source, labels_of(source)
            except ClipxError as problem:
                self.warn(
                    f"no validation images ({problem.message}): fixed values are used, as val=none does"
                )
                self.validation_regime = "none"
                self._validation = None, np.empty(0, np.int64)
        source, labels = self._validation
        if source is None or not np.isin(labels, list(classes)).any():
            return None
        found = self._encode_drawn("validation", source, labels, shots, seed, classes, 1)
        return rows_of(found.features, self.needs), found.labels

    def _encode_drawn(
        self,
        part: str,
        source: Any,
        labels: NDArray[np.int64],
        shots: int | None,
        seed: int,
        classes: Sequence[int],
        views: int,
    ) -> _Shots:
        config, unusable = self.config, set[int]()
        while True:
            drawn = draw(
                labels,
                shots,
                classes=classes,
                dataset=str(source.name),
                seed=seed,
                nested=config.nested,
                part=part,
                unusable=unusable,
            )
            if not len(drawn):
                raise ClipxError(f"no class has a {part} image", hint="more data, or val=none")
            chosen = self._augmented(source, drawn, views)
            if self.together:
                self._share(chosen, split=part, bank=self.bank)
            features = encoded(
                self.clip,
                chosen,
                config,
                split=part,
                bank=self.bank,
                what=f"{part} {'views' if views > 1 else 'images'} of seed {seed}",
                announce=False,
            )
            place = {index: number for number, index in enumerate(drawn.indices.tolist())}
            groups = (
                features.index // views if views > 1 else features.index.clone().apply_(place.__getitem__)
            )
            lost = set(range(len(drawn))) - set(groups.unique().tolist())
            if not lost:
                break
            self.warn(f"{part} images that cannot be used, others drawn instead: {len(lost)}")
            unusable |= {int(drawn.indices[number]) for number in lost}
        if part == "train":
            self._say_short(drawn)
        self.draws.setdefault(seed, {})[part] = None
        local = torch.from_numpy(relabelled(drawn.labels, classes))
        found = _Shots(drawn, features, local[groups], groups)
        self.draws[seed][part] = found.ids
        return found

    def _augmented(self, source: Any, drawn: Draw, views: int) -> Any:
        indices = tuple(drawn.indices.tolist())
        if views == 1:
            return kept("selection", indices, (source,), lambda: Chosen(source, indices))
        low, high = self.config.view_scale
        flip, interpolation = self.config.view_flip, self.clip.preprocess_cfg["interpolation"]
        size = self.clip.image_size
        return kept(
            "selection",
            (indices, views, size, low, high, flip, interpolation),
            (source,),
            lambda: Views(
                source, indices, views, size=size, scale=(low, high), flip=flip, interpolation=interpolation
            ),
        )

    def _say_short(self, drawn: Draw) -> None:
        fewer = {self.names[label]: count for label, count in drawn.short.items() if count}
        none = [self.names[label] for label, count in drawn.short.items() if not count]
        if fewer and self.config.shots is not None:
            listed = _listed([f"{name} ({count})" for name, count in fewer.items()])
            self.warn(f"fewer than {self.config.shots} images, all of them used: {listed}")
        if none:
            self.warn(f"no image to learn from: {_listed(none)}")

    def fit(self, seed: int, classes: Sequence[int], test: FeatureSet) -> tuple[Adapted, _Shots]:
        """The card's adapter, fitted on the shots of one seed for these classes."""
        shots = self.shots(seed, classes)
        validation = self.validation(seed, classes, test)
        self._check_size(shots)
        device = self.clip.device
        names = [self.names[label] for label in classes]
        extras: dict[str, Any] = {
            "groups": shots.groups.to(device),
            "norms": None if shots.features.norms is None else shots.features.norms.to(device),
            "class_names": names,
            "templates": self.templates,
            "seed": seed,
        }
        if self.needs == "pre_projection":
            extras["projection"] = image_projection(self.clip)
        if self.needs in ("text_tower", "images"):
            extras["clip"] = self.clip
        if self.needs == "images":
            extras |= self._images(seed, classes, shots)
        adapter = _build(self.config.adapter, seed, self.given)
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as said, progress(f"training seed {seed}") as told:
            warnings.simplefilter("always")
            extras["progress"] = told
            protocol.fit(
                adapter,
                rows_of(shots.features, self.needs).to(device),
                shots.labels.to(device),
                self.classifier[list(classes)],
                logit_scale=self.scale,
                validation=None if validation is None else tuple(part.to(device) for part in validation),  # type: ignore[arg-type]
                **extras,
            )
        taken = time.monotonic() - began
        self.seconds[seed] = {"fit_seconds": taken}
        if self.needs in ("text_tower", "images"):
            seconds = console.duration(taken)
            console.info(f"trained on {len(shots.ids):,} images of seed {seed} in {seconds}")
        for each in said:
            if issubclass(each.category, UserWarning):
                self.warn(_named(str(each.message), names))
        return Adapted(self.clip, adapter, names, self.templates), shots

    def _images(self, seed: int, classes: Sequence[int], shots: _Shots) -> dict[str, Any]:
        low, high = self.config.view_scale
        transform = TrainTransform(
            self.clip.image_size,
            (low, high),
            STRETCHED,
            flip=self.config.view_flip,
            interpolation=self.clip.preprocess_cfg["interpolation"],
        )
        labels = relabelled(shots.drawn.labels, classes)
        options: dict[str, Any] = {"transform": transform, "preprocess": self.clip.preprocess, "seed": seed}
        return {"images": ShotImages(self.source, shots.drawn.indices.tolist(), labels.tolist(), **options)}

    def _check_size(self, shots: _Shots) -> None:
        width = self.classifier.shape[1]
        if shots.features.image.shape[1] != width:
            raise ClipxError(
                f"image features have {shots.features.image.shape[1]} dimensions, class vectors {width}",
                hint="is this model's image tower the one its text tower was trained with?",
            )

    def zero_shot(self, classes: Sequence[int]) -> Adapted:
        """The baseline over these classes."""
        vectors = self.classifier[list(classes)]
        names = [self.names[label] for label in classes]
        return Adapted(self.clip, zero_shot_of(vectors, vectors, self.scale), names, self.templates)

    def measured(
        self, adapted: Adapted, classes: Sequence[int], test: FeatureSet, seed: int | None = None
    ) -> Outcomes:
        """What becomes of the test images of these classes, the others left out.

        With a seed, what an answer takes is written down beside what its fit took.
        """
        if adapted.tower is not self.clip:
            test = self.test(adapted.tower)
        labels = torch.from_numpy(relabelled(_known(test.labels, len(self.names)), classes))
        kept = labels >= 0
        if not kept.any():
            raise ClipxError(f"the {self.config.split} split has no image of the classes that are asked for")
        began = time.monotonic()
        found = adapted.outcomes(rows_of(test, adapted.adapter.needs)[kept], labels[kept])
        if seed is not None:
            self.seconds[seed]["seconds_per_image"] = (time.monotonic() - began) / int(kept.sum())
        return found

    def keep_draws(self) -> None:
        """Write down which images were drawn, one file a seed."""
        for seed, parts in self.draws.items():
            self.run.write_text(
                f"shots/seed-{seed}.json", json.dumps(parts, indent=1, ensure_ascii=False) + "\n"
            )

    def keep_adapters(self, fitted: dict[int, Adapted]) -> None:
        """Save every fitted adapter, with what is needed to use it."""
        first = next(iter(fitted.values()))
        save_adapted(
            self.run.path(FOLDER),
            {f"seed-{seed}": each.adapter for seed, each in fitted.items()},
            first,
            model=model_arguments(self.config.model),
            method=str(self.config.method),
        )

    def describe(self, fitted: dict[int, Adapted], seen: dict[int, Outcomes]) -> None:
        """What a result depends on, in results.json."""
        config = self.config
        self.run.results(
            {
                "dataset": str(self.source.name),
                "classes": len(self.names),
                "templates": self.templates,
                "task": config.task,
                "shots": config.shots,
                "views": config.views,
                "val": self.validation_regime,
                "leaky_parity": bool(config.leaky_parity),
                "seeds": {
                    str(seed): {
                        "top1": float((outcome.ranks < 1).mean()),
                        "train_images": len(self.draws[seed]["train"]),
                        "validation_images": len(self.draws[seed].get("validation") or []),
                        **self.seconds[seed],
                        "found": _plain_values(fitted[seed].adapter),
                    }
                    for seed, outcome in seen.items()
                },
            }
        )


def _few_shot(bench: _Bench, seeds: Sequence[int]) -> dict[str, float]:
    test = bench.test()
    baseline = bench.measured(bench.zero_shot(bench.all), bench.all, test)
    fitted, seen, counts = {}, {}, []
    for seed in seeds:
        fitted[seed], shots = bench.fit(seed, bench.all, test)
        seen[seed] = bench.measured(fitted[seed], bench.all, test, seed)
        counts.append(np.bincount(shots.drawn.labels, minlength=len(bench.names)))
    groups = bench.groups(test)
    estimates = _beside(seen, baseline, groups=None if groups is None else groups[0])
    for name, node in bench.config.transfer.items():
        estimates |= _transferred(bench, str(name), node, fitted)
    bench.keep_draws()
    bench.keep_adapters(fitted)
    bench.describe(fitted, seen)
    _report(bench, join(seen.values()), baseline, np.mean(counts, axis=0), len(seeds))
    if groups is not None:
        _report_groups(bench, list(seen.values()), baseline, *groups)
    return _finish(bench, estimates)


def _beside(
    seen: dict[int, Outcomes], baseline: Outcomes, prefix: str = "", groups: Tensor | None = None
) -> dict[str, Estimate]:
    """Figures over seeds beside those of zero-shot, and the difference of top-1.

    With the group of every row, those of the worst group too.
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


def _transferred(
    bench: _Bench, name: str, node: DictConfig, fitted: dict[int, Adapted]
) -> dict[str, Estimate]:
    """The fitted adapters on other data, without any change: another domain, or other classes."""
    source = open_source(node, "test")
    names = [str(each) for each in source.classes or []]
    if len(names) < 2:
        raise ClipxError(f"transfer.{name} has {len(names)} classes: nothing to tell apart")
    own = {each.casefold() for each in bench.names}
    known = all(each.casefold() in own for each in names)
    templates = bench.templates if known else list(source.templates or bench.templates)
    vectors = class_vectors(bench.clip, names, templates, batch_size=bench.config.batch_size)
    plain = Adapted(bench.clip, zero_shot_of(vectors, vectors, bench.scale), names, templates)

    def features(clip: CLIP) -> FeatureSet:
        bank = "image" if bench.needs != "pre_projection" else bench.bank
        found = encoded(
            clip,
            source,
            bench.config,
            split="test",
            bank=bank,
            limit=bench.config.limit,
            what=f"{name} images",
        )
        check_skipped(found, f"transfer.{name}", bench.config.max_bad, bench.run)
        return found

    test = features(bench.clip)
    baseline = plain.outcomes(test.image, test.labels)
    seen = {}
    for seed, adapted in fitted.items():
        other = adapted.over(names, templates)
        if other is None:
            bench.warn(
                f"{bench.config.method} knows nothing of the classes of {name}: zero-shot stands there"
            )
            seen[seed] = baseline
            continue
        rows = test if other.tower is bench.clip else features(other.tower)
        seen[seed] = other.outcomes(rows_of(rows, other.adapter.needs), rows.labels)
    return _beside(seen, baseline, prefix=f"{name}_")


def _base_to_new(bench: _Bench, seeds: Sequence[int]) -> dict[str, float]:
    base, new = base_and_new(len(bench.names))
    test = bench.test()
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
        other = fitted[seed].over([bench.names[label] for label in new])
        if other is None:
            bench.warn(f"{bench.config.method} knows nothing of new classes: zero-shot stands there")
            other = plain["new"]
        seen["new"][seed] = bench.measured(other, new, test)
    halves = {half: _beside(seen[half], before[half]) for half in ("base", "new")}
    ours = harmonic_mean(halves["base"]["top1"].value, halves["new"]["top1"].value)
    theirs = harmonic_mean(halves["base"]["zero_shot_top1"].value, halves["new"]["zero_shot_top1"].value)
    bench.keep_draws()
    bench.keep_adapters(fitted)
    bench.describe(fitted, seen["base"])
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
    return {**together, **_finish(bench, estimates)}


def _report(bench: _Bench, seen: Outcomes, baseline: Outcomes, shots: NDArray[Any], seeds: int) -> None:
    """The per-class table, adapted beside zero-shot, and the confusion figure over all seeds."""
    columns = ["class", "shots", "support", "recall", "zero_shot_recall", "difference", "precision"]
    rows = []
    for place, (ours, theirs) in enumerate(
        zip(per_class(seen, bench.names), per_class(baseline, bench.names), strict=True)
    ):
        gain = None if ours.recall is None or theirs.recall is None else ours.recall - theirs.recall
        row = [ours.name, float(shots[place]), ours.support // seeds, ours.recall, theirs.recall, gain]
        rows.append([*row, ours.precision, ours.confused_with])
    title = f"{bench.clip.name}: {bench.config.method}, {bench.config.shots or 'all'} shots"
    report_classes(bench.run, [*columns, "confused_with"], rows, seen, title)


def _report_groups(
    bench: _Bench, seen: Sequence[Outcomes], baseline: Outcomes, groups: Tensor, names: list[str]
) -> None:
    """The table of groups, adapted (the mean over seeds) beside zero-shot."""
    tables = [per_group(each.ranks < 1, groups, names) for each in seen]
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


def _finish(bench: _Bench, estimates: dict[str, Estimate]) -> dict[str, float]:
    run, config = bench.run, bench.config
    run.results({"intervals": {name: [each.low, each.high] for name, each in estimates.items()}})
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    name = f"adapt/{config.method}/{run.directory.name if run.directory else 'latest'}"
    run.next = [
        f"clipx zeroshot adapter={name} image=PHOTO.jpg",
        f"clipx adapt --multirun --method zero-shot,{config.method} shots=1,2,4,8,16",
    ]
    return flatten(estimates)


def _target(node: DictConfig) -> Any:
    from hydra.utils import get_object

    try:
        return get_object(str(node["_target_"]))
    except Exception:
        return None  # building it says what is wrong


def _needs(node: DictConfig) -> str:
    needs = getattr(_target(node), "needs", "features")
    if needs not in protocol.NEEDS:
        raise ClipxError(f"this adapter needs {needs!r}", hint=did_you_mean(str(needs), protocol.NEEDS))
    return str(needs)


def _build(node: DictConfig, seed: int, given: dict[str, Any]) -> Any:
    target = _target(node)
    known = inspect.signature(target).parameters if target is not None else {}
    own = {"seed": seed} if "seed" in known else {}
    return build(node, **{**given, **own})


def _found_elsewhere(config: DictConfig, run: Run) -> dict[str, Any]:
    """Hyperparameters that another run of the method found on validation, the median over seeds."""
    if config.hyperparameters is None:
        return {}
    assert run.directory is not None
    root = run.directory.parents[2]
    folder = find_run(root, str(config.hyperparameters), command="adapt", holding=FOLDER) / FOLDER
    described = describe(folder)
    if described["method"] != config.method:
        raise ClipxError(
            f"{config.hyperparameters} is a run of {described['method']}, not of {config.method}",
            hint=f"a run of clipx adapt --method {config.method}",
        )
    found: dict[str, list[Any]] = {}
    for file in described["files"]:
        adapter = saving.load(folder / file)
        known = protocol.arguments(adapter)
        for name, value in _plain_values(adapter).items():
            if name.removesuffix("_") in known:
                found.setdefault(name.removesuffix("_"), []).append(value)
    if not found:
        raise ClipxError(f"{config.method} searches nothing that could be transferred", hint="val=none")
    return {
        name: statistics.median(values) if isinstance(values[0], float) else values[0]
        for name, values in found.items()
    }


def _plain_values(adapter: Any) -> dict[str, Any]:
    """What was learnt that is a number or a word."""
    return {
        name: value
        for name, value in protocol.learnt(adapter).items()
        if isinstance(value, bool | int | float | str)
    }


def _known(labels: Tensor, classes: int) -> NDArray[np.int64]:
    found = labels.numpy()
    if len(found) and found.max() >= classes:
        raise ClipxError(
            f"label {int(found.max())} is outside the {classes} classes",
            hint="one name a class: labels=[...], or data.class_names",
        )
    return found


def _named(message: str, names: Sequence[str]) -> str:
    """A warning with the class's name where it gives its number: ``class 3 has no shot``."""
    words = message.split()
    for place, word in enumerate(words[:-1]):
        number = words[place + 1].rstrip(":,")
        if word == "class" and number.isdigit() and int(number) < len(names):
            words[place + 1] = words[place + 1].replace(number, repr(names[int(number)]))
            break
    return " ".join(words)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
