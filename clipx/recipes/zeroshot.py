"""``clipx zeroshot``: classify and retrieve with a CLIP as it is, or rank labels for images."""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.config import build
from clipx.data.fields import UNLABELLED
from clipx.data.images import EXTENSIONS, open_image
from clipx.errors import BadSample, ClipxError, did_you_mean, kind_of
from clipx.features.encode import FeatureSet
from clipx.inference.adapted import FOLDER, Adapted, describe, load_adapted
from clipx.inference.evaluation import class_outcomes, retrieval_estimates
from clipx.inference.score_ensemble import ensemble
from clipx.inference.zero_shot import compare, embed_images
from clipx.models.clip import CLIP
from clipx.recipes.ensembling import heads_of, report_weights
from clipx.recipes.frozen import check_skipped, encoded, load_pretrained, report_classes, templates_of
from clipx.recipes.parts import open_source
from clipx.recipes.sharing import kept
from clipx.reports.tables import METRIC_COLUMNS, markdown, metric_rows
from clipx.run import Run
from clipx.runs import find_run
from clipx.tasks.classification import Outcomes, accuracy, per_class
from clipx.tasks.intervals import Estimate, flatten

TASKS = ("classification", "retrieval")


def main(config: DictConfig, run: Run) -> dict[str, float]:
    """Measure the model on a split, or rank labels for ``image=``; returns metrics, or probabilities."""
    if not run.writes:
        return {}
    heads = heads_of(config) if "ensemble" in config else None
    adapted = None if config.adapter is None else _open_adapter(config, run)
    clip = load_pretrained(config.model, config.device) if adapted is None else adapted.clip
    if heads is not None:
        clip = ensemble(clip, heads, config.ensemble.weight)
    if config.image is not None:
        return _rank_labels(clip, adapted, config, run)
    return _measure(clip, adapted, config, run)


def _open_adapter(config: DictConfig, run: Run) -> Adapted:
    """The adapter of a run (a head that was fine-tuned is one too), or one of its files, with its model."""
    given = Path(str(config.adapter)).expanduser()
    if given.is_file():
        folder, file = given.parent, given.name
    else:
        assert run.directory is not None
        root = run.directory.parents[2]
        folder, file = find_run(root, str(config.adapter), holding=FOLDER) / FOLDER, None
    clip = load_pretrained(OmegaConf.create(describe(folder)["model"]), config.device)
    return load_adapted(folder, clip, file=file)


def _measure(clip: CLIP, adapted: Adapted | None, config: DictConfig, run: Run) -> dict[str, float]:
    wanted = _tasks(config.task)
    if adapted is not None:
        if wanted is not None and "retrieval" in wanted:
            raise ClipxError("an adapter classifies, it does not retrieve", hint="task=classification")
        wanted = ["classification"]
    source = open_source(config.data, config.split)
    names = list(config.labels or source.classes or [])
    features = encoded(
        clip if adapted is None else adapted.tower,
        source,
        config,
        split=config.split,
        bank="image" if adapted is None else adapted.bank,
        text=wanted is None or "retrieval" in wanted,
        limit=config.limit,
    )
    check_skipped(features, config.split, config.max_bad, run)

    allowed = _allowed(features, names)
    chosen = [task for task in TASKS if task in (allowed if wanted is None else wanted)]
    refused = [task for task in chosen if task not in allowed]
    if refused or not chosen:
        raise ClipxError(
            f"the {config.split} split does not allow {' or '.join(refused or TASKS)}",
            hint="classification needs labels and two classes or more, retrieval needs captions",
        )
    estimates: dict[str, Estimate] = {}
    classifier = None
    if "classification" in chosen:
        if adapted is None:
            templates, title = templates_of(config, source), f"{clip.name}: {config.method}"
            classifier = _class_vectors(clip, names, templates, config)
            seen = class_outcomes(clip, features.image, features.labels, classifier)
        else:
            ours = _over(adapted, names, config)
            templates, title = ours.templates, f"{clip.name}: {config.adapter}"
            seen = ours.outcomes(ours.rows(features), features.labels)
        estimates |= accuracy(seen)
        _report_classes(seen, names, config, run, title)
        run.results({"classes": len(names), "templates": templates})
    if "retrieval" in chosen:
        assert features.text is not None
        estimates |= retrieval_estimates(
            clip, features.image, features.text, features.pairs, seed=config.seed
        )
        run.results({"texts": len(features.texts), "pairs": len(features.pairs)})
    run.results(
        {
            "samples": len(features),
            "intervals": {name: [each.low, each.high] for name, each in estimates.items()},
        }
    )
    table = markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:])
    if "ensemble" in config:
        retrieve = "retrieval" in chosen
        table += "\n" + report_weights(clip, features, classifier, config, run, retrieve=retrieve)
    run.write_text("table.md", table)
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


def _over(adapted: Adapted, names: Sequence[str], config: DictConfig) -> Adapted:
    known = {name.casefold() for name in adapted.names}
    strange = next((str(name) for name in names if str(name).casefold() not in known), None)
    found = adapted.over(names)
    said = f"adapter={config.adapter} was not fitted for the class {strange!r}"
    if found is None:
        raise ClipxError(said, hint=did_you_mean(str(strange), adapted.names))
    if strange is not None:
        console.warn(f"{said}: names alone decide")
    return found


def _class_vectors(
    clip: CLIP, names: Sequence[str], templates: Sequence[str], config: DictConfig
) -> torch.Tensor:
    def make() -> torch.Tensor:
        method = build(config.classifier)
        return method(clip, [str(name) for name in names], templates, batch_size=config.batch_size)

    made_from = (repr(config.classifier), tuple(names), tuple(templates), config.batch_size)
    return kept("classifier", made_from, (clip,), make)


def _report_classes(seen: Outcomes, names: Sequence[str], config: DictConfig, run: Run, title: str) -> None:
    """The per-class table and the confusion figure."""
    columns = ["class", "support", "recall", "precision", "confused_with"]
    rows = [
        [row.name, row.support, row.recall, row.precision, row.confused_with]
        for row in per_class(seen, names)
    ]
    report_classes(run, columns, rows, seen, f"{title}, {config.split} split")


def _rank_labels(clip: CLIP, adapted: Adapted | None, config: DictConfig, run: Run) -> dict[str, float]:
    """Print the likeliest labels of every image; returns their probabilities."""
    if not config.labels and adapted is None:
        raise ClipxError("image= needs labels to choose from", hint="'labels=[cat, dog]'")
    names = [str(name) for name in config.labels or (adapted.names if adapted else [])]
    files = find_images(config.image if isinstance(config.image, str) else list(config.image))
    if adapted is None:
        templates = templates_of(config, None)
        classifier = _class_vectors(clip, names, templates, config)
    else:
        adapted = _over(adapted, names, config)
        templates = adapted.templates
    predictions: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for first in range(0, len(files), config.batch_size):
        part = files[first : first + config.batch_size]
        images = {file: image for file in part if (image := _opened(file, skipped, alone=len(files) == 1))}
        if not images:
            continue
        if adapted is None:
            shares = compare(clip, embed_images(clip, list(images.values())), classifier)
        else:
            shares = adapted.probabilities(list(images.values()))
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
