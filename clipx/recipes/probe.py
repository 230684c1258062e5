"""``clipx probe``: look into a frozen CLIP, with the embeddings that the card's probe needs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from clipx import console
from clipx.config import build
from clipx.data.fewshot import labels_of
from clipx.data.fields import UNLABELLED
from clipx.data.loading import is_stream
from clipx.data.restyled import Restyled
from clipx.errors import ClipxError, did_you_mean
from clipx.features.encode import FeatureSet, embed_texts
from clipx.features.views import Chosen
from clipx.models.clip import CLIP
from clipx.models.comparison import check_cosine
from clipx.probes.protocol import NEEDS, Material, Probe, Result, Shift
from clipx.recipes.frozen import check_skipped, class_vectors, encoded, load_pretrained, templates_of
from clipx.recipes.parts import open_source
from clipx.recipes.sharing import kept
from clipx.reports.figures import save
from clipx.reports.tables import METRIC_COLUMNS, csv_text, markdown, metric_rows
from clipx.run import Run
from clipx.tasks.intervals import flatten

TEXTS = ("captions", "prompts")
_HELD_OUT = 10
"""Of so many training images one is held out where the data has no validation split."""


def main(config: DictConfig, run: Run) -> dict[str, float]:
    """Fetch what the probe needs, call it, write down what it found; returns its metrics."""
    if not run.writes:
        return {}
    probe = build(config.probe)  # wrong settings are told before anything is encoded
    _check(probe, config)
    clip = load_pretrained(config.model, config.device)
    _check_comparison(probe, clip, config.method)
    return _report(probe(_Gathering(clip, probe, config, run).material()), run)


def _check(probe: Probe, config: DictConfig) -> None:
    strange = [need for need in probe.needs if need not in NEEDS]
    if strange:
        raise ClipxError(f"this probe needs {strange[0]!r}", hint=did_you_mean(strange[0], NEEDS))
    if config.texts not in TEXTS:
        raise ClipxError(f"there are no texts={config.texts}", hint=did_you_mean(str(config.texts), TEXTS))
    if config.split in probe.needs:
        raise ClipxError(
            f"{config.method} learns or chooses on the {config.split} split: it cannot be measured on it",
            hint="split=test",
        )


def _check_comparison(probe: Probe, clip: CLIP, method: str) -> None:
    works = "linear-probe-full and knn-probe take any comparison, as clipx zeroshot does"
    if not getattr(probe, "any_comparison", False):
        check_cosine(clip.comparison, method, works)
    if probe.bank == "raw" or not (clip.comparison.one_vector or probe.bank == "image"):
        check_cosine(clip.comparison, f"the bank {probe.bank}", "probe.bank=image")


class _Gathering:
    """One model and one data set, and what of them a probe is given."""

    def __init__(self, clip: CLIP, probe: Probe, config: DictConfig, run: Run) -> None:
        self.clip, self.probe, self.config, self.run = clip, probe, config, run
        self.source = open_source(config.data, config.split)
        self.names = [str(name) for name in config.labels or self.source.classes or []]
        self.templates = templates_of(config, self.source)
        self.skipped: dict[str, dict[str, int]] = {}

    def material(self) -> Material:
        """What the probe needs.

        Raises:
            ClipxError: the data lacks something of it.
        """
        needs, config = self.probe.needs, self.config
        if "classes" in needs:
            self._check_classes()
        captions = "texts" in needs and config.texts == "captions"
        measured = self._encoded(self.source, config.split, text=captions, limit=config.limit)
        if "classes" in needs:
            self._check_labels(measured, config.split)
        train, validation = self._learnt_from()
        text, pairs = self._texts(measured) if "texts" in needs else (None, None)
        self.run.results({"samples": len(measured), "classes": len(self.names), "templates": self.templates})
        material = Material(
            measured=measured,
            train=train,
            validation=validation,
            names=self.names,
            classifier=self._classifier() if "classes" in needs else None,
            text=text,
            pairs=pairs,
            shifts=self._shifts() if "shifts" in needs else {},
            outside=self._outside() if "outside" in needs else {},
            logit_scale=float(self.clip.logit_scale.detach()),
            score=self._score,
            pooled=self._pooled,
            title=f"{self.clip.name} on {self.source.name}",
            seed=config.seed,
        )
        self.run.results({"skipped": self.skipped})  # of every part, where encoding wrote the last one
        return material

    @torch.no_grad()
    def _score(self, images: Tensor, texts: Tensor) -> Tensor:
        device = self.clip.device
        return self.clip.comparison.image_to_text(images.to(device), texts.to(device)).cpu()

    @torch.no_grad()
    def _pooled(self, images: Tensor) -> Tensor:
        return self.clip.comparison.pooled_images(images.to(self.clip.device)).cpu()

    def _check_classes(self) -> None:
        if len(self.names) < 2:
            raise ClipxError(
                f"there are {len(self.names)} classes: nothing to tell apart",
                hint="data with labels of two classes or more; names for them: labels=[cat, dog]",
            )

    def _check_labels(self, features: FeatureSet, what: str) -> None:
        if not (features.labels != UNLABELLED).any():
            raise ClipxError(f"no image of {what} has a label", hint="class folders, or a column of labels")
        if int(features.labels.max()) >= len(self.names):
            raise ClipxError(
                f"{what} has label {int(features.labels.max())}, names are for {len(self.names)} classes",
                hint="one name a class: labels=[...], or data.class_names",
            )

    def _encoded(
        self,
        source: Any,
        split: str,
        *,
        text: bool = False,
        limit: int | None = None,
        what: str | None = None,
    ) -> FeatureSet:
        features = encoded(
            self.clip,
            source,
            self.config,
            split=split,
            bank=self.probe.bank,
            text=text,
            limit=limit,
            what=f"{what or split} images",
        )
        check_skipped(features, what or split, self.config.max_bad, self.run)
        self.skipped[what or split] = features.skipped
        return features

    def _learnt_from(self) -> tuple[FeatureSet | None, FeatureSet | None]:
        """The training and the validation split, as far as they are needed."""
        if "train" not in self.probe.needs:
            return None, None
        source = open_source(self.config.data, "train")
        held: Any = None
        if "validation" in self.probe.needs:
            try:
                held = open_source(self.config.data, "validation")
            except ClipxError as problem:
                if is_stream(source):
                    raise
                console.warn(
                    f"no validation images ({problem.message}): 1 in {_HELD_OUT} of train is held out"
                )
                source, held = _cut(source)
        train = self._encoded(source, "train")
        validation = None if held is None else self._encoded(held, "validation")
        for features, what in ((train, "train"), (validation, "validation")):
            if features is not None:
                self._check_labels(features, what)
        return train, validation

    def _classifier(self) -> Tensor:
        options = {"batch_size": self.config.batch_size, "precision": self.config.precision}
        return class_vectors(self.clip, self.names, self.templates, **options).cpu()

    def _texts(self, measured: FeatureSet) -> tuple[Tensor, Tensor]:
        """Texts ``[T, D]`` and pairs of (image, text)."""
        if self.config.texts == "captions":
            if measured.text is None or not len(measured.pairs):
                raise ClipxError(
                    f"the {self.config.split} split has no captions",
                    hint="texts=prompts compares with the prompts of class names; or data with captions",
                )
            return measured.text, measured.pairs
        self._check_classes()
        self._check_labels(measured, self.config.split)
        prompts = [template.replace("{}", name) for name in self.names for template in self.templates]
        text = embed_texts(
            self.clip, prompts, batch_size=self.config.batch_size, precision=self.config.precision
        )
        count = len(self.templates)
        images = (measured.labels != UNLABELLED).nonzero()[:, 0]
        columns = measured.labels[images, None] * count + torch.arange(count)
        return text, torch.stack([images.repeat_interleave(count), columns.flatten()], 1)

    def _shifts(self) -> dict[str, Shift]:
        config, shifts = self.config, {}
        every = [[place] for place in range(len(self.names))]
        for style in config.styles:
            source = kept(
                "selection", ("restyled", style), (self.source,), partial(Restyled, self.source, style)
            )
            features = self._encoded(source, config.split, limit=config.limit, what=style)
            shifts[style] = Shift(features, every, restyled=True)
        for name, node in config.shifts.items():
            if name in shifts:
                raise ClipxError(
                    f"there are two shifts of the name {name}", hint="styles=[] leaves the styles out"
                )
            source = open_source(node, "test")
            columns = class_columns(self.names, [str(each) for each in source.classes or []], str(name))
            features = self._encoded(source, "test", limit=config.limit, what=str(name))
            shifts[str(name)] = Shift(features, columns)
        return shifts

    def _outside(self) -> dict[str, FeatureSet]:
        return {
            str(name): self._encoded(
                open_source(node, "test"), "test", limit=self.config.limit, what=f"outside.{name}"
            )
            for name, node in self.config.outside.items()
        }


def class_columns(names: Sequence[str], wanted: Sequence[str], what: str) -> list[list[int]]:
    """For every class of other data the columns that it has among the classes that a model tells apart.

    Names are compared without regard to case. A class that several columns bear the name of has them all.

    Args:
        names: of the columns.
        wanted: classes of the other data.
        what: the other data, for the message.

    Raises:
        ClipxError: naming the classes that no column has.
    """
    if list(names) == list(wanted):
        return [[place] for place in range(len(names))]
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name.casefold(), []).append(place)
    strange = [name for name in wanted if name.casefold() not in places]
    if strange or not wanted:
        listed = console.listed(strange) or "none at all"
        raise ClipxError(
            f"shifts.{what} has classes that the data does not have: {listed}",
            hint=f"the same names: shifts.{what}.class_names=...; images of other classes go to outside",
        )
    return [places[name.casefold()] for name in wanted]


def _cut(source: Any) -> tuple[Any, Any]:
    """A source without one in ``_HELD_OUT`` of each of its classes, and these."""
    labels = labels_of(source)
    seen: dict[int, int] = {}
    held = []
    for place, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        if seen[label] % _HELD_OUT == _HELD_OUT - 1:
            held.append(place)
    out = set(held)
    return Chosen(source, [place for place in range(len(labels)) if place not in out]), Chosen(source, held)


def _report(result: Result, run: Run) -> dict[str, float]:
    estimates = dict(result.metrics)
    for name, table in result.tables.items():
        run.write_text(f"{name}.csv", csv_text(table.columns, table.rows))
    for name, figure in result.figures.items():
        path = run.path("figures", f"{name}.png")
        save(figure, path)
        console.info(f"figure {path}")
    run.results(
        {
            **result.details,
            "intervals": {name: [each.low, each.high] for name, each in estimates.items()},
        }
    )
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    run.next = [
        "clipx probe --method modality-gap",
        "clipx probe --method linear-probe-full data=folder data.root=PHOTOS",
        "clipx probe --method robustness-suite",
    ]
    return flatten(estimates)
