"""``clipx finetune``: train a CLIP further on data of one's own; what it gains there, and loses elsewhere."""

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clipx import console
from clipx.adapters.trained_head import TrainedHead
from clipx.data.fields import check_fields
from clipx.data.label_captions import label_captions
from clipx.data.loading import count_reasons
from clipx.errors import ClipxError, did_you_mean
from clipx.inference.adapted import FOLDER, Adapted, save_adapted
from clipx.inference.before_after import BeforeAfter, Head, Measured, measured
from clipx.inference.evaluation import Evaluation
from clipx.inference.fisher import fisher_of
from clipx.inference.weight_curve import state_of
from clipx.inference.zero_shot import prompt_tokens, zero_shot_classifier
from clipx.models.clip import CLIP
from clipx.models.interpolation import check_same_architecture
from clipx.models.loading import load
from clipx.models.locking import lock
from clipx.models.patches import lock_pooling
from clipx.recipes.fitting import batches, evaluation_of, loop_settings, tracked, tracking
from clipx.recipes.frozen import pretrained_arguments, report_classes
from clipx.recipes.merging import (
    VALIDATION,
    check_heads,
    check_merge,
    finished,
    linear,
    merge,
    warn_of_another_start,
)
from clipx.recipes.parts import (
    batch_fields,
    build_objectives,
    build_optimizer,
    check_learning_rate,
    open_source,
    save_model,
)
from clipx.recipes.probed_head import probed_head
from clipx.reports.tables import METRIC_COLUMNS, markdown, metric_rows
from clipx.run import Run
from clipx.tasks.classification import per_class
from clipx.tasks.intervals import Estimate, flatten
from clipx.training.group import join_launch
from clipx.training.loop import Trainer
from clipx.training.module import TrainingModule

PAIRS = ("captions", "labels")
SELECTS = ("last", "best")
_REMEMBERED = 1 << 28
"""Bytes of images that each evaluation keeps for the next."""
_HEADLINES = ("top1", "mean_per_class", "recall@1", "difference")


def main(config: DictConfig, run: Run) -> dict[str, Any]:
    """Measure, train, measure again, save the model; returns the final metrics beside those of before."""
    _check(config)
    device = join_launch().device  # the number of processes decides how many steps an epoch has
    torch.manual_seed(config.seed)
    source = open_source(config.data, "train")
    if config.pairs == "labels":
        source = label_captions(source)
    validation = _evaluation(config, config.data, "validation", config.evaluation.limit)
    own = _evaluation(config, config.data, "test", None)
    tests = {"": own, **_elsewhere(config)}

    if config.get("run") is not None:
        if not run.writes:
            return {}
        clip, first, facts = _first_end(config, run, own, device)
        tuned, head = finished(str(config.run), run, own, device)
        check_heads(first, head)
        if head is None and first is not None:
            head = _prompts(tuned, own)
        start = _start(clip, first, head, own)
        check_same_architecture(start, state_of(tuned, head))
        before = _before(tests, clip, first)
    else:
        settings = loop_settings(config.training, source, run.began_with)
        accelerator = settings.accelerator(**tracking(config, run))
        clip = load(**pretrained_arguments(config.model)).to(accelerator.device)
        objectives, weights = build_objectives(
            config.objectives,
            {
                "classifier": lambda: _classifier(clip, own),
                "prompts": lambda: prompt_tokens(clip, own.source.classes or [], own.templates),
                "probe": lambda: probed_head(
                    clip, _evaluation(config, config.data, "train", None), validation
                ),
                "clip": lambda: clip,
            },
        )
        if config.logit_scale is not None:
            clip.set_logit_scale(config.logit_scale)
        lock(clip, **{str(part): locked for part, locked in config.lock.items()})
        if all(getattr(each, "patched", ()) for each in objectives.values()):
            lock_pooling(clip)
        module = TrainingModule(clip, objectives, weights)
        check_fields(module.needs, batch_fields(source, config.semantics), part=" + ".join(objectives))
        if "label" in module.needs and config.pairs != "labels":
            raise ClipxError(f"{' + '.join(objectives)} learns from labels", hint="pairs=labels")
        optimizer = build_optimizer(config.optim, module)
        before = _before(tests, clip)
        start = state_of(clip, _head(module, own)) if "merge" in config else {}
        trainer = Trainer(
            module,
            optimizer,
            settings,
            run,
            seed=config.seed,
            accelerator=accelerator,
            evaluate=lambda now: flatten(measured(validation, now, _head(trainer.trained, own)).estimates),
            best=config.evaluation.best or validation.key_metric,
        )
        facts = _train(trainer, source, config, run, validation.templates)
        tuned, head = trainer.clip, _head(trainer.trained, own)
        accelerator.end_training()
    if not run.writes:
        return {}
    merged: dict[str, Estimate] = {}
    if "merge" in config:
        evaluations = {**tests, VALIDATION: validation}
        ends = clip.name if clip.name == tuned.name else f"{clip.name} to {tuned.name}"
        merged = merge(
            tuned,
            head,
            start,
            config.merge,
            evaluations,
            run,
            title=f"{ends}: {config.method}",
            information=lambda: fisher_of(
                tuned,
                head,
                source,
                templates=own.templates,
                samples=config.merge.fisher.samples,
                workers=config.loader.workers,
                seed=config.seed,
            ),
        )
    save_model(tuned, run)
    if head is not None:
        _save_head(head, tuned, own, config, run)
    estimates = _after(before, tuned, head, config, run) | merged
    skipped = {name or "test": each.skipped for name, each in tests.items()}
    facts["skipped"] = {**facts.get("skipped", {}), VALIDATION: validation.skipped, **skipped}
    intervals = {name: [each.low, each.high] for name, each in estimates.items()}
    run.results({**own.sizes, **facts, "intervals": intervals})
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    run.next = [
        f"clipx zeroshot model={run.shown}",
        f"clipx zeroshot adapter={run.shown} image=photo.jpg"
        if head
        else f"clipx zeroshot model={run.shown} image=photo.jpg 'labels=[cat, dog]'",
    ]
    metrics = flatten(_headlines(estimates))
    return metrics | {
        name: facts[name] for name in ("training_seconds", "images_per_second") if name in facts
    }


def _train(
    trainer: Trainer, source: Any, config: DictConfig, run: Run, templates: Sequence[str]
) -> dict[str, Any]:
    """Train to the end and put the weights that are wanted in ``trainer.trained``; what results.json says."""
    if trainer.start and run.writes:
        console.info(f"going on from step {trainer.start}")
    size, needs = trainer.settings.batch_size, trainer.module.needs
    with tracked(trainer.accelerator, config):
        loader = batches(
            source, trainer.module.clip, config, batch_size=size, templates=templates, needs=needs
        )
        fitted = trainer.fit(loader)
    kept = trainer.take_best() if config.evaluation.select == "best" and run.writes else fitted.steps
    return {
        "images_per_second": fitted.images_per_second,
        "data_wait": fitted.data_wait,
        "training_seconds": fitted.seconds,
        "steps": fitted.steps,
        "best": {"metric": trainer.best, "value": fitted.best, "step": fitted.best_step},
        "kept_step": kept,
        "skipped": {"train": count_reasons(fitted.bad)},
    }


def _before(tests: dict[str, Evaluation], clip: CLIP, head: Head | None = None) -> dict[str, BeforeAfter]:
    console.info("measuring the model as it is")
    return {name: BeforeAfter(each, clip, head) for name, each in tests.items()}


def _after(
    before: dict[str, BeforeAfter], clip: CLIP, head: Head | None, config: DictConfig, run: Run
) -> dict[str, Estimate]:
    """Every figure of now beside that of before, and the report by class."""
    estimates: dict[str, Estimate] = {}
    for name, each in before.items():
        after = each.measure(clip, head)
        estimates |= _prefixed(each.beside(after), name)
        if not name:
            _report(each, after, f"{clip.name}: {config.method}", run)
    return estimates


def _first_end(
    config: DictConfig, run: Run, own: Evaluation, device: torch.device
) -> tuple[CLIP, Head | None, dict[str, Any]]:
    """The model at alpha 0, that of the run ``start`` or ``model``; its head, if any; what was merged."""
    facts = {"merged_run": str(config.run)}
    start = config.get("start")
    if start is not None:
        return *finished(str(start), run, own, device), facts | {"merged_start": str(start)}
    warn_of_another_start(str(config.run), run, config.model)
    return load(**pretrained_arguments(config.model)).to(device), None, facts


def _start(clip: CLIP, first: Head | None, head: Head | None, own: Evaluation) -> dict[str, Tensor]:
    """The weights at alpha 0, with the prompts as the head where only the other end has trained one."""
    return state_of(clip, _prompts(clip, own) if head is not None and first is None else first)


def _prompts(clip: CLIP, own: Evaluation) -> Head:
    """The zero-shot classifier of the data's classes as a head."""
    return Head(linear(_classifier(clip, own)), own.source.classes)


def _check(config: DictConfig) -> None:
    """Refuse what can be refused before anything is loaded."""
    check_learning_rate(config.optim.lr)
    for name, value, known in (
        ("pairs", config.pairs, PAIRS),
        ("evaluation.select", config.evaluation.select, SELECTS),
    ):
        if value not in known:
            raise ClipxError(f"there is no {name}={value}", hint=did_you_mean(str(value), known))
    if "merge" in config:
        check_merge(config.merge)
        if config.get("start") is not None and config.run is None:
            raise ClipxError(
                f"start={config.start} is one end of a merge without the other",
                hint="run=RUN, the finished run at alpha 1; to train from a run: model=RUN",
            )


def _elsewhere(config: DictConfig) -> dict[str, Evaluation]:
    """The other data that is measured before and after, by the prefix of its metrics."""
    nodes = {f"shift_{name}": node for name, node in config.shift.items()}
    if OmegaConf.is_dict(config.forgetting):
        nodes["forgetting"] = config.forgetting
    limit = config.evaluation.elsewhere_limit
    return {name: _evaluation(config, node, "test", limit) for name, node in nodes.items()}


def _evaluation(config: DictConfig, data: DictConfig, split: str, limit: int | None) -> Evaluation:
    return evaluation_of(config, data, split, limit, remember=_REMEMBERED)


def _prefixed(estimates: dict[str, Estimate], prefix: str) -> dict[str, Estimate]:
    return {f"{prefix}_{name}" if prefix else name: each for name, each in estimates.items()}


def _headlines(estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    """What is worth printing: of the model as it was, and of other data, a few figures; table.md has all."""
    aside = ("before_", "shift_", "forgetting_", "zero_shot_", "fine_tuned_", "logit_ensemble_")
    return {
        name: each
        for name, each in estimates.items()
        if not name.startswith(aside) or name.endswith(_HEADLINES)
    }


def _classifier(clip: CLIP, own: Evaluation) -> Tensor:
    """The zero-shot classifier ``[C, D]`` of the data's classes, times the logit scale."""
    vectors = zero_shot_classifier(clip, own.source.classes or [], own.templates)
    return (vectors.to(clip.device) * clip.logit_scale).detach()


def _head(module: TrainingModule, own: Evaluation) -> Head | None:
    """The classifier that one of the objectives has trained, if any."""
    headed: list[Any] = [each for each in module.objectives.values() if hasattr(each, "head")]
    return Head(headed[0].head, own.source.classes or [], headed[0].pool) if headed else None


def _save_head(head: Head, clip: CLIP, own: Evaluation, config: DictConfig, run: Run) -> None:
    """Keep a head as the adapter of the model that was trained with it."""
    adapter = TrainedHead.of(head.module, head.pool)
    like = Adapted(clip, adapter, [str(name) for name in head.classes], own.templates)
    model = {"name": str((run.path() / "model").absolute())}
    save_adapted(run.path(FOLDER), {"head": adapter}, like, model=model, method=str(config.method))


def _report(each: BeforeAfter, after: Measured, title: str, run: Run) -> None:
    """The per-class table, after beside before, and the confusion figure; nothing without labels."""
    if after.seen is None or each.before.seen is None:
        return
    names = [str(name) for name in each.evaluation.source.classes]
    rows = []
    for now, then in zip(per_class(after.seen, names), per_class(each.before.seen, names), strict=True):
        gain = None if now.recall is None or then.recall is None else now.recall - then.recall
        rows.append([now.name, now.support, now.recall, then.recall, gain, now.precision, now.confused_with])
    columns = ["class", "support", "recall", "recall_before", "difference", "precision", "confused_with"]
    report_classes(run, columns, rows, after.seen, title)
