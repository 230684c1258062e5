"""``clipx zeroshot``: classify and retrieve with a CLIP as it is, or rank labels for images."""

import csv
import glob
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.config import build
from clipx.data.fields import UNLABELLED
from clipx.data.images import EXTENSIONS, open_image
from clipx.data.loading import DEFAULT_TEMPLATES
from clipx.data.templates import templates as find_templates
from clipx.errors import BadSample, ClipxError, did_you_mean, kind_of
from clipx.features.encode import FeatureSet, Progress, encode
from clipx.inference.evaluation import class_outcomes, retrieval_estimates
from clipx.inference.zero_shot import compare, embed_images
from clipx.models.clip import CLIP, WEIGHTS_FILE
from clipx.models.loading import PRESETS, load
from clipx.recipes.parts import open_source
from clipx.reports.figures import confusion, save
from clipx.reports.tables import METRIC_COLUMNS, markdown, metric_rows
from clipx.run import Run
from clipx.tasks.classification import Outcomes, accuracy, confusion_matrix, per_class
from clipx.tasks.intervals import Estimate, flatten

TASKS = ("classification", "retrieval")
_LARGEST_FIGURE = 1000
"""Classes beyond which a confusion matrix says nothing to the eye."""


def main(config: DictConfig, run: Run) -> dict[str, float]:
    """Measure the model on a split, or rank labels for ``image=``; returns metrics, or probabilities."""
    if not run.writes:
        return {}
    clip = load_pretrained(config.model, config.device)
    if config.image is not None:
        return _rank_labels(clip, config, run)
    return _measure(clip, config, run)


def load_pretrained(model: DictConfig, device: str | None = None) -> CLIP:
    """Load a model that has learnt something: random weights measure nothing.

    Args:
        model: arguments of ``clipx.models.loading.load``; a preset without ``pretrained`` gets its own.
        device: null for an accelerator where there is one.

    Raises:
        ClipxError: the weights would be random, or what ``load`` raises.
    """
    arguments: dict[str, Any] = dict(OmegaConf.to_container(model, resolve=True))  # type: ignore[arg-type]
    name = str(arguments["name"])
    if arguments.get("pretrained") is None and not name.startswith(("hf-hub:", "local-dir:")):
        if (PRESETS / name / WEIGHTS_FILE).is_file():
            arguments["pretrained"] = name
        elif not Path(name).exists():
            raise ClipxError(f"model={name} has random weights", hint=_weights_hint(name))
    return load(**arguments, device=_device(device)).eval()


def _device(given: str | None) -> torch.device:
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


def _measure(clip: CLIP, config: DictConfig, run: Run) -> dict[str, float]:
    wanted = _tasks(config.task)
    source = open_source(config.data, config.split)
    names = list(config.labels or source.classes or [])
    features = _encoded(clip, source, config, text=wanted is None or "retrieval" in wanted)
    _check_skipped(features, config, run)

    allowed = _allowed(features, names)
    chosen = [task for task in TASKS if task in (allowed if wanted is None else wanted)]
    refused = [task for task in chosen if task not in allowed]
    if refused or not chosen:
        raise ClipxError(
            f"the {config.split} split does not allow {' or '.join(refused or TASKS)}",
            hint="classification needs labels and two classes or more, retrieval needs captions",
        )
    estimates: dict[str, Estimate] = {}
    if "classification" in chosen:
        templates = _templates(config, source)
        seen = class_outcomes(
            clip, features.image, features.labels, _class_vectors(clip, names, templates, config)
        )
        estimates |= accuracy(seen)
        _report_classes(seen, names, config, run, clip)
        run.results({"classes": len(names), "templates": templates})
    if "retrieval" in chosen:
        assert features.text is not None
        estimates |= retrieval_estimates(
            clip, features.image, features.text, features.pairs, seed=config.seed
        )
        run.results({"texts": len(features.texts)})
    run.results(
        {
            "samples": len(features),
            "intervals": {name: [each.low, each.high] for name, each in estimates.items()},
        }
    )
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    run.next = [
        "clipx zeroshot data=folder data.root=PHOTOS",
        "clipx zeroshot image=PHOTO.jpg 'labels=[cat, dog]'",
    ]
    return flatten(estimates)


def _tasks(given: Any) -> list[str] | None:
    """The tasks asked for; None for whatever the data allows."""
    named = [given] if isinstance(given, str) else list(given or [])
    if not named or named == ["auto"]:
        return None
    for name in named:
        if name not in TASKS:
            raise ClipxError(f"there is no task {name!r}", hint=did_you_mean(str(name), [*TASKS, "auto"]))
    return named


def _allowed(features: FeatureSet, names: Sequence[str]) -> list[str]:
    classification = len(names) > 1 and bool((features.labels != UNLABELLED).any())
    return [
        task for task, allowed in zip(TASKS, (classification, bool(features.texts)), strict=True) if allowed
    ]


def _templates(config: DictConfig, source: Any) -> list[str]:
    if config.templates is not None:
        return find_templates(OmegaConf.to_container(config).get("templates"))  # type: ignore[union-attr, arg-type]
    return list(getattr(source, "templates", None) or DEFAULT_TEMPLATES)


def _encoded(clip: CLIP, source: Any, config: DictConfig, *, text: bool) -> FeatureSet:
    began = time.monotonic()
    with _progress() as progress:
        features = encode(
            clip,
            source,
            split=config.split,
            text=text,
            root=None if config.cache is None else Path(config.cache),
            batch_size=config.batch_size,
            workers=config.loader.workers,
            precision=config.precision,
            limit=config.limit,
            progress=progress,
        )
    seconds = console.duration(time.monotonic() - began)
    counts = f"{len(features):,} images"
    if features.text is not None:
        counts += f" and {len(features.texts):,} texts"
    console.info(f"encoded {counts} in {seconds}" if features.encoded else f"{counts} from the feature store")
    return features


@contextmanager
def _progress() -> Iterator[Progress]:
    """A live bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    screen = console.stderr()
    columns = (
        TextColumn("[bold]encoding {task.description}"),
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


def _check_skipped(features: FeatureSet, config: DictConfig, run: Run) -> None:
    run.results({"skipped": {config.split: features.skipped}})
    bad = sum(features.skipped.values())
    if not bad:
        return
    total = bad + len(features)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in features.skipped.items())
    if bad / total > config.max_bad:
        raise ClipxError(
            f"{bad} of {total} samples cannot be used: {reasons}",
            hint=f"max_bad={config.max_bad} is the share that is tolerated",
        )
    console.warn(f"{bad} of {total} samples were passed over: {reasons}")


def _class_vectors(
    clip: CLIP, names: Sequence[str], templates: Sequence[str], config: DictConfig
) -> torch.Tensor:
    method = build(config.classifier)
    return method(clip, [str(name) for name in names], templates, batch_size=config.batch_size)


def _report_classes(seen: Outcomes, names: Sequence[str], config: DictConfig, run: Run, clip: CLIP) -> None:
    """The per-class table and the confusion figure."""
    rows = per_class(seen, names)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["class", "support", "recall", "precision", "confused_with"])
    writer.writerows([row.name, row.support, row.recall, row.precision, row.confused_with] for row in rows)
    run.write_text("per_class.csv", file.getvalue())
    if len(names) <= _LARGEST_FIGURE:
        path = run.path("figures", "confusion.png")
        save(
            confusion(confusion_matrix(seen), names, title=f"{clip.name}: zero-shot, {config.split} split"),
            path,
        )
        console.info(f"figure {path}")


def _rank_labels(clip: CLIP, config: DictConfig, run: Run) -> dict[str, float]:
    """Print the likeliest labels of every image; returns their probabilities."""
    if not config.labels:
        raise ClipxError("image= needs labels to choose from", hint="'labels=[cat, dog]'")
    names = [str(name) for name in config.labels]
    templates = _templates(config, None)
    files = find_images(config.image if isinstance(config.image, str) else list(config.image))
    classifier = _class_vectors(clip, names, templates, config)
    predictions: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for first in range(0, len(files), config.batch_size):
        part = files[first : first + config.batch_size]
        images = {file: image for file in part if (image := _opened(file, skipped, alone=len(files) == 1))}
        if not images:
            continue
        shares = compare(clip, embed_images(clip, list(images.values())), classifier)
        for file, row in zip(images, shares, strict=True):
            order = row.argsort(descending=True, stable=True)[: config.top].tolist()
            predictions.append(
                {"image": file, "labels": {names[place]: float(row[place]) for place in order}}
            )
    if not predictions:
        raise ClipxError(f"none of the {len(files)} files is a usable image")
    run.results(
        {
            "predictions": predictions,
            "templates": templates,
            "skipped": {"image": dict(skipped.most_common())},
        }
    )
    if len(predictions) == 1:
        return predictions[0]["labels"]
    return {
        f"{each['image']}: {name}": share for each in predictions for name, share in each["labels"].items()
    }


def _opened(file: str, skipped: Counter[str], *, alone: bool) -> Any:
    """The image, or None where it cannot be used and is not the only one."""
    try:
        return open_image(file)
    except BadSample as problem:
        if alone:
            raise ClipxError(f"{file} cannot be used: {problem}") from problem
        console.warn(f"passed over: {problem}")
        skipped[kind_of(str(problem))] += 1
        return None


def find_images(given: str | Sequence[str]) -> list[str]:
    """Image files that a path, a folder, a pattern, or a list of them names, each once.

    Raises:
        ClipxError: something names no file.
    """
    found: dict[str, None] = {}
    for item in [given] if isinstance(given, str) else given:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
        elif path.exists():
            inside = [str(path)]
        else:
            inside = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not inside:
            raise ClipxError(
                f"image={item} names no image file", hint="a file, a folder, a pattern like 'photos/*.jpg'"
            )
        found.update(dict.fromkeys(inside))
    return list(found)
