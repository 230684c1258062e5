"""A training in stages: each goes on from the model of the one before, with some settings of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipx import console
from clipx.config import flat
from clipx.config_errors import default_of, misfit
from clipx.errors import ClipxError, did_you_mean
from clipx.run import Run
from clipx.training.checkpoints import written_whole
from clipx.training.group import join_launch, told

FOLDER = "stages"
"""Of a run; each stage has its metrics, checkpoints and model in ``stages/<number>``."""


def stages_of(config: DictConfig) -> list[DictConfig]:
    """The settings of every stage: those of the run, but for what the stage has otherwise.

    A stage may change any key: the resolution (``model.image_size``, ``data.image_size``), the length of
    texts (``model.context_length``), what trains (``lock``), the data, the learning rate, the weight of an
    objective, how long it takes. Its seed is the next one, lest it see the data in the same order.

    Args:
        config: with ``stages``, a list of mappings of dotted or nested keys to values.

    Raises:
        ClipxError: a stage that is no mapping, or a key that there is not, naming both.
    """
    found = []
    base = config.copy()
    own = OmegaConf.to_container(config.stages)
    assert isinstance(own, list)
    base.stages = []
    for number, changes in enumerate(own, 1):
        if not isinstance(changes, Mapping):
            raise ClipxError(
                f"stage {number} is {changes!r}, not settings", hint="stages=[{training.steps: 100}, ...]"
            )
        stage = base.copy()
        stage.seed = base.seed + number - 1
        for key, value in _leaves(changes):
            _set(stage, key, value, number)
        found.append(stage)
    return found


def staged(
    config: DictConfig, run: Run, train: Callable[[DictConfig, Run], dict[str, Any]]
) -> dict[str, Any]:
    """Train one stage after another, and keep the last model as that of the run.

    A run that is resumed passes over the stages that are finished, and goes on inside the one that is not.
    Weights go from stage to stage; the optimizer, and what objectives own, start anew.

    Args:
        config: with ``stages``, one or more.
        run: of the whole; it gets the results of the last stage, and those of all in short.
        train: the recipe of a single stage, which saves its model in the run it is given.

    Returns:
        the metrics of the last stage.

    Raises:
        ClipxError: what ``stages_of`` or the recipe raises.
    """
    join_launch()
    settings = stages_of(config)
    root = told(run.path() if run.writes else None)
    short: list[dict[str, Any]] = []
    metrics: dict[str, Any] = {}
    for number, stage in enumerate(settings, 1):
        part = run.part(FOLDER, str(number))
        if number > 1:
            stage.model.pretrained = str(root / FOLDER / str(number - 1) / "model")
        known = told(part.read_results() if run.writes else None)
        said = ", ".join(f"{key}={value}" for key, value in _leaves(config.stages[number - 1]))
        if "metrics" in known:
            if run.writes:
                console.info(f"stage {number} of {len(settings)} is finished")
            metrics = known["metrics"]
        else:
            if run.writes:
                console.info(f"stage {number} of {len(settings)}: {said or 'as the run'}")
            metrics = train(stage, part)
            part.results({"metrics": metrics})
            known = told(part.read_results() if run.writes else None)
        short.append({"stage": number, "changes": said, **{key: known.get(key) for key in _SHORT}})
    if run.writes:
        last = root / FOLDER / str(len(settings))
        with written_whole(root / "model") as folder:
            shutil.copytree(last / "model", folder, dirs_exist_ok=True)
        run.results({**run.part(FOLDER, str(len(settings))).read_results(), "stages": short})
        run.next = [f"clipx zeroshot model={run.shown}"]
    return metrics


_SHORT = ("steps", "images_per_second", "training_seconds", "best", "metrics")
"""Results of a stage that stand in those of the run."""


def _leaves(changes: Any) -> list[tuple[str, Any]]:
    """Dotted keys, however they were written, and their values."""
    return [(key, value) for key, value in flat(changes).items() if key]


def _set(stage: DictConfig, key: str, value: Any, number: int) -> None:
    if key == "stages" or key.startswith("stages."):
        raise ClipxError(f"stage {number} has stages of its own", hint="put them in one list")
    before = default_of(stage, key)
    if expected := misfit(before, value):
        raise ClipxError(
            f"stage {number}: {key}={value}: expected {expected}", hint=f"the run has {key}={before}"
        )
    try:
        OmegaConf.update(stage, key, value)
    except OmegaConfBaseException as error:
        raise ClipxError(
            f"stage {number}: the configuration has no {key!r}, or not with such a value",
            hint=did_you_mean(key, list(flat(stage))),
        ) from error
