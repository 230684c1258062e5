"""``clipx pretrain``: train a CLIP on image-caption pairs."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.data.fields import check_fields
from clipx.data.loading import count_reasons, is_stream, training_loader
from clipx.data.transforms import TrainTransform
from clipx.errors import ClipxError, missing_extra
from clipx.inference.evaluation import Evaluation
from clipx.models.loading import load
from clipx.recipes.parts import (
    batch_fields,
    build_objectives,
    build_optimizer,
    open_source,
    save_model,
    tracked_settings,
)
from clipx.run import Run
from clipx.training.distributed import world
from clipx.training.loop import Trainer
from clipx.training.module import TrainingModule
from clipx.training.settings import LoopSettings


def main(config: DictConfig, run: Run) -> dict[str, Any]:
    """Train, evaluate on the test split, save the model; returns the final metrics."""
    PartialState()  # joins the processes of a launch: their number decides how many steps an epoch has
    torch.manual_seed(config.seed)
    source = open_source(config.data, "train")
    settings = loop_settings(config.training, source)
    accelerator = settings.accelerator(**_tracking(config, run))

    clip = load(**config.model)
    objectives, weights = build_objectives(config.objectives)
    module = TrainingModule(clip, objectives, weights)
    check_fields(module.needs, batch_fields(source), part=" + ".join(objectives))

    validation = _evaluation(config, "validation", config.evaluation.limit)
    test = _evaluation(config, "test", None)  # opened now, so that what it lacks is known before training
    trainer = Trainer(
        module,
        build_optimizer(config.optim, module),
        settings,
        run,
        seed=config.seed,
        accelerator=accelerator,
        evaluate=validation,
        best=config.evaluation.best or validation.key_metric,
    )
    if trainer.start and run.writes:
        console.info(f"going on from step {trainer.start}")
    rank, size = world()
    transform = TrainTransform(clip.image_size, **OmegaConf.to_container(config.augment))  # type: ignore[arg-type]
    with _tracked(accelerator, config):
        fitted = trainer.fit(
            lambda steps, positions: training_loader(
                source,
                transform=transform,
                tokenize=clip.tokenize,
                templates=validation.templates,
                extras=[field for field in module.needs if field not in {"image", "text", "label", "index"}],
                batch_size=settings.batch_size,
                seed=config.seed,
                steps=steps,
                workers=config.loader.workers,
                rank=rank,
                world=size,
                positions=positions,
            )
        )
    accelerator.end_training()
    if not run.writes:
        return {}
    save_model(trainer.clip, run)
    metrics = test(trainer.clip)
    run.results(
        {
            **test.sizes,
            "images_per_second": fitted.images_per_second,
            "data_wait": fitted.data_wait,
            "training_seconds": fitted.seconds,
            "steps": fitted.steps,
            "best": {"metric": trainer.best, "value": fitted.best, "step": fitted.best_step},
            "skipped": {
                "train": count_reasons(fitted.bad),
                "validation": validation.skipped,
                "test": test.skipped,
            },
        }
    )
    run.next = [
        f"clipx zeroshot model={run.shown}",
        f"clipx zeroshot model={run.shown} image=photo.jpg 'labels=[cat, dog]'",
    ]
    return {**metrics, "training_seconds": fitted.seconds, "images_per_second": fitted.images_per_second}


def loop_settings(training: DictConfig, source: Any) -> LoopSettings:
    """The loop's settings, with ``epochs`` turned into ``steps``.

    Raises:
        ClipxError: neither steps nor epochs, epochs of a stream of unknown size, or what ``LoopSettings``
            raises.
    """
    values: dict[str, Any] = dict(OmegaConf.to_container(training, resolve=True))  # type: ignore[arg-type]
    epochs = values.pop("epochs")
    if values["steps"] is None:
        if epochs is None or epochs <= 0:
            raise ClipxError(
                f"training.epochs={epochs} must be above 0", hint="set training.epochs or training.steps"
            )
        size = source.size if is_stream(source) else len(source)
        if size is None:
            raise ClipxError(
                "training.epochs needs data of known size", hint="set training.steps, or data.size for shards"
            )
        pairs = max(1, values["batch_size"] * values["accumulate"] * world()[1])
        values["steps"] = max(1, math.ceil(epochs * size / pairs))
    longest = int(values["steps"] // 5)
    if values["warmup"] > longest:  # a short trial run still warms up and trains
        if world()[0] == 0:
            console.info(f"warm-up takes {longest} of the {values['steps']} steps, not {values['warmup']}")
        values["warmup"] = longest
    return LoopSettings(**values)


def _evaluation(config: DictConfig, split: str, limit: int | None) -> Evaluation:
    return Evaluation(
        open_source(config.data, split),
        templates=config.evaluation.templates,
        batch_size=config.evaluation.batch_size,
        workers=config.loader.workers,
        limit=limit,
    )


def _tracking(config: DictConfig, run: Run) -> dict[str, Any]:
    name = config.tracker.name
    if not name or not run.writes:
        return {}
    from accelerate.tracking import get_available_trackers

    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise missing_extra(name, "trackers")
    return {"log_with": name, "project_dir": str(run.path("tracker"))}


@contextlib.contextmanager
def _tracked(accelerator: Accelerator, config: DictConfig) -> Iterator[None]:
    """Trackers from here on; also after an error all that they were told is written."""
    if accelerator.log_with:
        accelerator.init_trackers(config.tracker.project, config=tracked_settings(config))
    try:
        yield
    except BaseException:
        for tracker in accelerator.trackers:
            tracker.finish()
        raise
