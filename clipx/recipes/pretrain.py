"""``clipx pretrain``: train a CLIP on image-caption pairs."""

import math
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipx import console
from clipx.data.fields import check_fields
from clipx.data.loading import count_reasons, is_stream, training_loader
from clipx.data.transforms import TrainTransform
from clipx.errors import ClipxError, missing_extra
from clipx.inference.evaluation import Evaluation
from clipx.models.loading import load
from clipx.recipes.parts import batch_fields, build_objectives, build_optimizer, flat, open_source
from clipx.run import Run
from clipx.training.distributed import world
from clipx.training.loop import LoopSettings, Trainer
from clipx.training.module import TrainingModule


def main(config: DictConfig, run: Run) -> dict[str, Any]:
    """Train, evaluate on the test split, save the model; returns the final metrics."""
    torch.manual_seed(config.seed)
    source = open_source(config.data, "train")
    settings = loop_settings(config.training, source)
    accelerator = settings.accelerator(**_tracking(config, run))
    if config.tracker.name:
        accelerator.init_trackers(config.tracker.project, config=flat(config))

    clip = load(**config.model)
    objectives, weights = build_objectives(config.objectives)
    module = TrainingModule(clip, objectives, weights)
    check_fields(module.needs, batch_fields(source), part=" + ".join(objectives))

    validation = _evaluation(config, "validation", config.evaluation.limit)
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
    if trainer.start:
        console.info(f"going on from step {trainer.start}")
    rank, size = world()
    transform = TrainTransform(clip.image_size, **OmegaConf.to_container(config.augment))  # type: ignore[arg-type]
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
    trained = trainer.clip.eval()
    trained.save(run.path("model"))  # type: ignore[operator]
    test = _evaluation(config, "test", None)
    metrics = test(trained)
    run.results(
        {
            "images_per_second": fitted.images_per_second,
            "data_wait": fitted.data_wait,
            "training_seconds": fitted.seconds,
            "steps": fitted.steps,
            "skipped": {"train": count_reasons(fitted.bad), "test": test.skipped},
        }
    )
    run.next = [
        f"clipx zeroshot model={run.directory}",
        f"clipx zeroshot model={run.directory} image=photo.jpg 'labels=[cat, dog]'",
    ]
    return {**metrics, "training_seconds": fitted.seconds, "images_per_second": fitted.images_per_second}


def loop_settings(training: DictConfig, source: Any) -> LoopSettings:
    """The loop's settings, with ``epochs`` turned into ``steps``."""
    values: dict[str, Any] = dict(OmegaConf.to_container(training, resolve=True))  # type: ignore[arg-type]
    epochs = values.pop("epochs")
    if values["steps"] is None:
        size = source.size if is_stream(source) else len(source)
        if size is None:
            raise ClipxError(
                "training.epochs needs data of known size", hint="set training.steps, or data.size for shards"
            )
        pairs = values["batch_size"] * values["accumulate"] * world()[1]
        values["steps"] = max(1, math.ceil(epochs * size / pairs))
    values["warmup"] = min(values["warmup"], values["steps"] // 5)  # a short trial run still warms up and trains
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
    if not name:
        return {}
    from accelerate.tracking import get_available_trackers

    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise missing_extra(name, "trackers")
    return {"log_with": name, "project_dir": str(run.path("tracker"))}

