"""``clipx pretrain``: train a CLIP on image-caption pairs."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from clipx import console
from clipx.data.fields import check_fields
from clipx.data.loading import count_reasons
from clipx.errors import ClipxError, did_you_mean
from clipx.inference.evaluation import Evaluation
from clipx.models.clip import CLIP
from clipx.models.geometry import COSINE
from clipx.models.loading import load
from clipx.models.locking import lock
from clipx.probes.modality_gap import gap_estimates, thinned
from clipx.recipes.fitting import batches, evaluation_of, loop_settings, tracked, tracking
from clipx.recipes.parts import batch_fields, build_objectives, build_optimizer, open_source, save_model
from clipx.recipes.stages import staged
from clipx.run import Run
from clipx.tasks.intervals import flatten
from clipx.training.group import join_launch
from clipx.training.loop import Trainer
from clipx.training.module import TrainingModule


def shifted(config: DictConfig) -> DictConfig:
    """The data of the test split: that of training, but for what ``evaluation.shift`` has otherwise."""
    data, changes = config.data.copy(), config.evaluation.shift or {}
    if not isinstance(changes, Mapping):
        raise ClipxError(
            f"evaluation.shift={changes} is no mapping", hint="'evaluation.shift={style: [sketch]}'"
        )
    for key, value in changes.items():
        if key not in data:
            raise ClipxError(
                f"evaluation.shift: the data has no {key!r}", hint=did_you_mean(str(key), [*map(str, data)])
            )
        data[key] = value
    return data


def assembled(config: DictConfig) -> TrainingModule:
    """The model and the objectives that the card says, what is to be locked without gradient."""
    clip = load(**config.model)
    objectives, weights = build_objectives(config.objectives, {"clip": lambda: clip})
    if config.logit_scale is not None:
        clip.set_logit_scale(config.logit_scale)
    lock(clip, **{str(part): locked for part, locked in config.lock.items()})
    return TrainingModule(clip, objectives, weights)


def main(config: DictConfig, run: Run) -> dict[str, Any]:
    """Train, in stages if there are any, evaluate on the test split, save the model; returns the metrics."""
    return staged(config, run, trained) if config.stages else trained(config, run)


def trained(config: DictConfig, run: Run) -> dict[str, Any]:
    """Train in one go, evaluate on the test split, save the model; returns the metrics."""
    join_launch()  # the number of processes decides how many steps an epoch has
    torch.manual_seed(config.seed)
    source = open_source(config.data, "train")
    settings = loop_settings(config.training, source, run.began_with)
    accelerator = settings.accelerator(**tracking(config, run))

    module = assembled(config)
    clip = module.clip
    geometry = config.evaluation.geometry and clip.comparison.kind == COSINE.kind
    if config.evaluation.geometry and not geometry and run.writes:
        console.warn(
            f"the figures of evaluation.geometry are of cosines; this model compares by "
            f"{clip.comparison.kind}: they are left out"
        )
    check_fields(module.needs, batch_fields(source, config.semantics), part=" + ".join(module.objectives))

    validation = evaluation_of(config, config.data, "validation", config.evaluation.limit)
    # Opened now, so that what it lacks is known before training.
    test = evaluation_of(config, shifted(config), "test")
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
    save_model(trainer.clip, run, trainer.trained.objectives)
    metrics = _measured(test, trainer.clip, geometry=geometry)
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


_COMPARED = 4000
"""Images, and texts, that the figures of the gap are of: they compare all with all."""


def _measured(test: Evaluation, clip: CLIP, *, geometry: bool) -> dict[str, float]:
    embedded = test.embed(clip)
    texts = test.texts(clip, embedded)
    estimates = test.estimates(clip, embedded, test.outcomes(clip, embedded), texts)
    if geometry and texts is not None:
        pairs = torch.as_tensor(texts[1])
        estimates |= gap_estimates(*thinned(embedded.image.double(), texts[0].double(), pairs, _COMPARED))
    return flatten(estimates)
