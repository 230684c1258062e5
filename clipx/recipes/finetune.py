"""``clipx finetune``: train a CLIP further on data of one's own; what it gains there, and loses elsewhere."""

from typing import Any

import torch
from accelerate import PartialState
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
from clipx.inference.zero_shot import zero_shot_classifier
from clipx.models.clip import CLIP
from clipx.models.loading import load
from clipx.models.locking import lock
from clipx.recipes.fitting import batches, evaluation_of, loop_settings, tracked, tracking
from clipx.recipes.frozen import pretrained_arguments, report_classes
from clipx.recipes.parts import (
    batch_fields,
    build_objectives,
    build_optimizer,
    check_learning_rate,
    open_source,
    save_model,
)
from clipx.reports.tables import METRIC_COLUMNS, markdown, metric_rows
from clipx.run import Run
from clipx.tasks.classification import per_class
from clipx.tasks.intervals import Estimate, flatten
from clipx.training.loop import Trainer
from clipx.training.module import TrainingModule

PAIRS = ("captions", "labels")
SELECTS = ("last", "best")
_HEADLINES = ("top1", "mean_per_class", "recall@1", "difference")


def main(config: DictConfig, run: Run) -> dict[str, Any]:
    """Measure, train, measure again, save the model; returns the final metrics beside those of before."""
    _check(config)
    PartialState()  # joins the processes of a launch: their number decides how many steps an epoch has
    torch.manual_seed(config.seed)
    source = open_source(config.data, "train")
    if config.pairs == "labels":
        source = label_captions(source)
    settings = loop_settings(config.training, source)
    accelerator = settings.accelerator(**tracking(config, run))
    validation = evaluation_of(config, config.data, "validation", config.evaluation.limit)
    own, others = evaluation_of(config, config.data, "test"), _elsewhere(config)

    clip = load(**pretrained_arguments(config.model)).to(accelerator.device)
    objectives, weights = build_objectives(config.objectives, {"classifier": lambda: _classifier(clip, own)})
    lock(clip, **{str(part): bool(locked) for part, locked in config.lock.items()})
    module = TrainingModule(clip, objectives, weights)
    check_fields(module.needs, batch_fields(source), part=" + ".join(objectives))
    optimizer = build_optimizer(config.optim, module)

    console.info("measuring the model as it is")
    before = {name: BeforeAfter(each, clip) for name, each in {"": own, **others}.items()}
    trainer = Trainer(
        module,
        optimizer,
        settings,
        run,
        seed=config.seed,
        accelerator=accelerator,
        evaluate=lambda clip: flatten(measured(validation, clip, _head(trainer.trained, own)).estimates),
        best=config.evaluation.best or validation.key_metric,
    )
    if trainer.start and run.writes:
        console.info(f"going on from step {trainer.start}")
    with tracked(accelerator, config):
        fitted = trainer.fit(
            batches(
                source,
                clip,
                config,
                batch_size=settings.batch_size,
                templates=validation.templates,
                needs=module.needs,
            )
        )
    accelerator.end_training()
    if not run.writes:
        return {}
    kept = trainer.take_best() if config.evaluation.select == "best" else fitted.steps
    head = _head(trainer.trained, own)
    save_model(trainer.clip, run)
    if head is not None:
        _save_head(head, trainer.clip, own, config, run)
    estimates: dict[str, Estimate] = {}
    for name, each in before.items():
        after = each.measure(trainer.clip, head)
        estimates |= _prefixed(each.beside(after), name)
        if not name:
            _report(each, after, f"{clip.name}: {config.method}", run)
    run.results(
        {
            **own.sizes,
            "images_per_second": fitted.images_per_second,
            "data_wait": fitted.data_wait,
            "training_seconds": fitted.seconds,
            "steps": fitted.steps,
            "best": {"metric": trainer.best, "value": fitted.best, "step": fitted.best_step},
            "kept_step": kept,
            "intervals": {name: [each.low, each.high] for name, each in estimates.items()},
            "skipped": {
                "train": count_reasons(fitted.bad),
                "validation": validation.skipped,
                **{name or "test": each.evaluation.skipped for name, each in before.items()},
            },
        }
    )
    run.write_text("table.md", markdown(METRIC_COLUMNS, metric_rows(estimates), right=METRIC_COLUMNS[1:]))
    run.next = [
        f"clipx zeroshot model={run.shown}",
        f"clipx zeroshot adapter={run.shown} image=photo.jpg"
        if head
        else f"clipx zeroshot model={run.shown} image=photo.jpg 'labels=[cat, dog]'",
    ]
    return {
        **flatten(_headlines(estimates)),
        "training_seconds": fitted.seconds,
        "images_per_second": fitted.images_per_second,
    }


def _check(config: DictConfig) -> None:
    """Refuse what can be refused before anything is loaded."""
    check_learning_rate(config.optim.lr)
    for name, value, known in (
        ("pairs", config.pairs, PAIRS),
        ("evaluation.select", config.evaluation.select, SELECTS),
    ):
        if value not in known:
            raise ClipxError(f"there is no {name}={value}", hint=did_you_mean(str(value), known))


def _elsewhere(config: DictConfig) -> dict[str, Evaluation]:
    """The other data that is measured before and after, by the prefix of its metrics."""
    nodes = {f"shift_{name}": node for name, node in config.shift.items()}
    if OmegaConf.is_dict(config.forgetting):
        nodes["forgetting"] = config.forgetting
    limit = config.evaluation.elsewhere_limit
    return {name: evaluation_of(config, node, "test", limit) for name, node in nodes.items()}


def _prefixed(estimates: dict[str, Estimate], prefix: str) -> dict[str, Estimate]:
    return {f"{prefix}_{name}" if prefix else name: each for name, each in estimates.items()}


def _headlines(estimates: dict[str, Estimate]) -> dict[str, Estimate]:
    """What is worth printing: of the model as it was, and of other data, a few figures; table.md has all."""
    aside = ("before_", "shift_", "forgetting_", "zero_shot_")
    return {
        name: each
        for name, each in estimates.items()
        if not name.startswith(aside) or name.endswith(_HEADLINES)
    }


def _classifier(clip: CLIP, own: Evaluation) -> Tensor:
    """The zero-shot classifier ``[C, D]`` of the data's classes, times the logit scale."""
    vectors = zero_shot_classifier(clip, own.source.classes, own.templates)
    return vectors * clip.logit_scale.detach().cpu()


def _head(module: TrainingModule, own: Evaluation) -> Head | None:
    """The classifier that one of the objectives has trained, if any."""
    heads = [objective.head for objective in module.objectives.values() if hasattr(objective, "head")]
    return Head(heads[0], own.source.classes) if heads else None  # type: ignore[arg-type]


def _save_head(head: Head, clip: CLIP, own: Evaluation, config: DictConfig, run: Run) -> None:
    """Keep a head as the adapter of the model that was trained with it."""
    adapter = TrainedHead.of(head.module)  # type: ignore[arg-type]
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
