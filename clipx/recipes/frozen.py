"""What recipes that use a CLIP as it is have in common: its weights, its class vectors, encoding, reports."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.data.loading import DEFAULT_TEMPLATES
from clipx.data.templates import templates as find_templates
from clipx.errors import ClipxError
from clipx.features.encode import FeatureSet, Progress, encode
from clipx.inference.zero_shot import zero_shot_classifier
from clipx.models.clip import CLIP, WEIGHTS_FILE
from clipx.models.loading import PRESETS, load
from clipx.recipes.sharing import kept, sharing
from clipx.reports.figures import confusion, save
from clipx.reports.tables import csv_text
from clipx.run import Run
from clipx.tasks.classification import Outcomes, confusion_matrix

_LARGEST_FIGURE = 1000
"""Classes beyond which a confusion matrix says nothing to the eye."""


def load_pretrained(model: DictConfig, device: str | None = None) -> CLIP:
    """Load a model that has learnt something: random weights measure nothing.

    Args:
        model: arguments of ``clipx.models.loading.load``; a preset without ``pretrained`` gets its own.
        device: null for an accelerator where there is one.

    Raises:
        ClipxError: the weights would be random, or what ``load`` raises.
    """
    arguments = pretrained_arguments(model)
    where = device_of(device)
    return kept(
        "model", repr((sorted(arguments.items()), where)), (), lambda: load(**arguments, device=where).eval()
    )


def pretrained_arguments(model: DictConfig) -> dict[str, Any]:
    """Arguments of ``clipx.models.loading.load`` for a model that has learnt something.

    Raises:
        ClipxError: the weights would be random.
    """
    arguments = model_arguments(model)
    name = str(arguments["name"])
    brings_its_own = name.startswith(("hf-hub:", "local-dir:")) or Path(name).exists()
    if arguments.get("pretrained") is None and not brings_its_own:
        raise ClipxError(f"model={name} has random weights", hint=_weights_hint(name))
    return arguments


def model_arguments(model: DictConfig) -> dict[str, Any]:
    """Arguments of ``clipx.models.loading.load``, with its own weights for a preset that has some."""
    arguments: dict[str, Any] = dict(OmegaConf.to_container(model, resolve=True))  # type: ignore[arg-type]
    name = str(arguments["name"])
    if arguments.get("pretrained") is None and (PRESETS / name / WEIGHTS_FILE).is_file():
        arguments["pretrained"] = name
    return arguments


def device_of(given: str | None) -> torch.device:
    """The device asked for, else an accelerator where there is one, else the CPU."""
    if given is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=given).device
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).partition("\n")[0]
        raise ClipxError(
            f"device={given} is not there: {reason}", hint="device=cpu works anywhere"
        ) from problem


def _weights_hint(name: str) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        return "train it (clipx pretrain), then model=pretrain/infonce/latest; or model.pretrained=PATH"
    shown = ", ".join(tags[:8]) + (", ..." if len(tags) > 8 else "")
    return f"model.pretrained=TAG, one of: {shown}; or a checkpoint file"


def templates_of(config: DictConfig, source: Any) -> list[str]:
    """The prompts given, else those of the data, else the default."""
    if config.templates is not None:
        return find_templates(OmegaConf.to_container(config).get("templates"))  # type: ignore[union-attr, arg-type]
    return list(getattr(source, "templates", None) or DEFAULT_TEMPLATES)


def class_vectors(
    clip: CLIP,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    precision: str = "fp32",
) -> torch.Tensor:
    """The zero-shot classifier ``[C, D]`` of a model for class names in prompts, on the model's device."""
    return kept(
        "classifier",
        (tuple(names), tuple(templates), batch_size, precision),
        (clip,),
        lambda: zero_shot_classifier(clip, names, templates, batch_size=batch_size, precision=precision).to(
            clip.device
        ),
    )


def encoding_settings(config: DictConfig) -> dict[str, Any]:
    """How a command encodes, as ``encode`` and ``encode_together`` take it."""
    return {
        "root": None if config.cache is None else Path(config.cache),
        "batch_size": config.batch_size,
        "workers": config.loader.workers,
        "precision": config.precision,
    }


def encoded(
    clip: CLIP,
    source: Any,
    config: DictConfig,
    *,
    split: str,
    bank: str = "image",
    text: bool = False,
    limit: int | None = None,
    what: str = "images",
    announce: bool = True,
) -> FeatureSet:
    """The embeddings of a source, from the store or into it, with a word on what was done.

    Args:
        clip: the model.
        source: any.
        config: batch_size, precision, cache, loader.workers.
        split: name of the split.
        bank, text, limit: as ``encode`` takes them.
        what: what to call the items.
        announce: tell also that the store had them.
    """
    began = time.monotonic()
    found = []

    def make() -> FeatureSet:
        with progress("encoding") as told:
            made = encode(
                clip,
                source,
                split=split,
                bank=bank,
                text=text,
                **encoding_settings(config),
                limit=limit,
                progress=told,
            )
        found.append(made)
        return made

    key = (split, bank, text, config.cache, config.batch_size, config.precision, limit)
    features = kept("features", key, (clip, source), make)
    seconds = console.duration(time.monotonic() - began)
    counts = f"{len(features):,} {what}"
    if features.text is not None:
        counts += f" and {len(features.texts):,} texts"
    if found and features.encoded:
        console.info(f"encoded {counts} in {seconds}")
    elif announce:
        console.info(f"{counts} from the feature store")
    return features


@contextmanager
def progress(doing: str) -> Iterator[Progress]:
    """A live bar on a terminal, nothing elsewhere; ``doing`` is what it says before the name of the items."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    screen = console.stderr()
    columns = (
        TextColumn(f"[bold]{doing} {{task.description}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        bars: dict[str, Any] = {}

        def show(bank: str, done: int, total: int | None) -> None:
            if bank not in bars:
                bars[bank] = bar.add_task(f"{bank}s", total=total)
            bar.update(bars[bank], completed=done, total=total)

        yield show


def check_skipped(features: FeatureSet, split: str, max_bad: float, run: Run) -> None:
    """Report samples that were passed over.

    Raises:
        ClipxError: they are more than the share ``max_bad``.
    """
    run.results({"skipped": {split: features.skipped}})
    bad = sum(features.skipped.values())
    if not bad:
        return
    total = bad + len(features)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in features.skipped.items())
    if bad / total > max_bad:
        raise ClipxError(
            f"{bad} of {total} samples cannot be used: {reasons}",
            hint=f"max_bad={max_bad} is the share that is tolerated",
        )
    console.warn(f"{bad} of {total} samples were passed over: {reasons}")


def report_classes(
    run: Run, columns: Sequence[str], rows: Sequence[Sequence[Any]], seen: Outcomes, title: str
) -> None:
    """Write the per-class table, whose first column names the classes, and (but in a sweep that shares) the
    confusion figure.

    Args:
        run: where to.
        columns: headings of the table.
        rows: one a class.
        seen: outcomes over the same classes.
        title: of the figure.
    """
    run.write_text("per_class.csv", csv_text(columns, rows))
    names = [str(row[0]) for row in rows]
    if len(names) <= _LARGEST_FIGURE and not sharing():  # a sweep of hundreds has figures of its own
        path = run.path("figures", "confusion.png")
        save(confusion(confusion_matrix(seen), names, title=title), path)
        console.info(f"figure {path}")
