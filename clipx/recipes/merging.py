"""The merge that ends a fine-tuning: weights between the model before and after, measured and chosen."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from clipx import console
from clipx.adapters import saving
from clipx.errors import ClipxError, did_you_mean
from clipx.inference.adapted import FOLDER, describe
from clipx.inference.before_after import Head
from clipx.inference.evaluation import Evaluation
from clipx.inference.weight_curve import Mix, Point, ensemble_top1, put, state_of, weight_curve
from clipx.models.clip import CLIP
from clipx.models.interpolation import (
    check_alpha,
    check_floor,
    check_same_architecture,
    fisher_average,
    interpolate,
)
from clipx.models.loading import load
from clipx.reports import figures
from clipx.reports.tables import csv_text
from clipx.reports.weight_curve import weight_curve as draw
from clipx.run import Run
from clipx.runs import find_run
from clipx.tasks.intervals import Estimate

VALIDATION = "validation"
AVERAGES = ("linear", "fisher")
_MARGIN = 0.01
"""How far below both of its ends the middle of the path has to be for a warning."""

State = Mapping[str, Tensor]


def check_merge(merge: DictConfig) -> None:
    """Check what a card says of its merge.

    Raises:
        ClipxError: an alpha outside [0, 1], or none to measure; an unknown way of averaging, or what it
            takes out of range.
    """
    if merge.average not in AVERAGES:
        raise ClipxError(
            f"there is no merge.average={merge.average}", hint=did_you_mean(str(merge.average), AVERAGES)
        )
    if merge.fisher.samples < 1:
        raise ClipxError(f"merge.fisher.samples={merge.fisher.samples} must be 1 or more")
    check_floor(merge.fisher.floor)
    if not OmegaConf.is_list(merge.alphas) or not len(merge.alphas):
        raise ClipxError(f"merge.alphas={merge.alphas} is no list", hint="merge.alphas=[0.0,0.5,1.0]")
    for alpha in [*merge.alphas, *([] if merge.alpha is None else [merge.alpha])]:
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise ClipxError(f"alpha={alpha} is no number", hint="merge.alphas=[0.0,0.5,1.0]")
        check_alpha(alpha)


def finished(reference: str, run: Run, own: Evaluation, device: torch.device) -> tuple[CLIP, Head | None]:
    """The model that a run of ``clipx finetune`` ended with, and its head, if it trained one.

    Args:
        reference: which run.
        run: of the merge.
        own: the data's evaluation, for whose classes a head has to be.
        device: to put both on.

    Raises:
        ClipxError: there is no such run, or its head is for other classes than those of the data.
    """
    folder = _folder_of(reference, run)
    clip = load(str(folder), device=device)
    clip.name = "/".join(folder.parts[-3:])  # of every version the last part is the same
    if not (folder / FOLDER).is_dir():
        return clip, None
    described = describe(folder / FOLDER)
    if described["names"] != [str(name) for name in own.source.classes or []]:
        raise ClipxError(
            f"the head of {reference} is for {len(described['names'])} other classes than those of the data",
            hint="the same data=, with all its settings, as that run",
        )
    trained = saving.load(folder / FOLDER / described["files"][0])
    head = linear(trained.weight_.to(device), trained.bias_.to(device))
    return clip, Head(head, own.source.classes, trained.pool)


def check_heads(first: Head | None, second: Head | None) -> None:
    """Check that the heads of two models, or the prompts of one without a head, see the same of an image.

    Raises:
        ClipxError: one is on patches, the other on embeddings.
    """
    pools = ["embedding" if head is None else head.pool for head in (first, second)]
    if len(set(pools)) > 1:
        raise ClipxError(
            "there are no weights between a head on patches and one on embeddings, as the prompts are",
            hint="two runs with heads on patches, or objectives.cross_entropy.pool=embedding in training",
        )


def warn_of_another_start(reference: str, run: Run, model: DictConfig) -> None:
    """Warn where a run of ``clipx finetune`` says that it started from another model than ``model``."""
    before = OmegaConf.select(OmegaConf.load(_folder_of(reference, run) / "config.yaml"), "model")
    if before != model:
        name = None if before is None else before.name
        console.warn(f"{reference} started from model={name}, not from model={model.name}")


def _folder_of(reference: str, run: Run) -> Path:
    assert run.directory is not None
    return find_run(run.directory.parents[2], reference, command="finetune", holding="model")


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with weights ``[C, D]``, and a bias ``[C]`` or zeros."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    return layer


def merge(
    clip: CLIP,
    head: Head | None,
    start: State,
    merging: DictConfig,
    evaluations: Mapping[str, Evaluation],
    run: Run,
    *,
    title: str,
    information: Callable[[], State],
) -> dict[str, Estimate]:
    """Measure the way from where a model started to where it is, choose, and leave the model there.

    Writes ``figures/weight_curve.png`` and ``weight_curve.csv``.

    Args:
        clip, head: as trained; they get the weights that are chosen.
        start: their weights before.
        merging: alpha (None: the best on the validation split), alphas, average, fisher.floor.
        evaluations: ``""`` of the data, ``validation``, ``shift_<name>`` and ``forgetting``.
        run: where to.
        title: of the figure.
        information: of every weight of ``clip`` and ``head`` as they are, for Fisher averaging.

    Returns:
        Figures of the fine-tuned model by ``fine_tuned_<name>``, those of both models' mean logits by
        ``logit_ensemble_<name>``, and ``alpha``.

    Raises:
        ClipxError: the weights are of different architectures.
    """
    ends = start, state_of(clip, head)
    check_same_architecture(*ends)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in clip.modules()):
        console.info("statistics of batch norm are interpolated like the weights")
    alphas = sorted({float(alpha) for alpha in [*merging.alphas, merging.alpha, 0, 1] if alpha is not None})
    console.info(f"measuring {len(alphas)} models between before and after")
    mix = _mix(clip, head, ends, merging, information)
    points = weight_curve(clip, head, ends, alphas, evaluations, mix)
    curves = {name: _values(points, name, each.key_metric) for name, each in evaluations.items()}
    chosen = merging.alpha
    if chosen is None:
        chosen = alphas[max(range(len(alphas)), key=lambda place: curves[VALIDATION][place])]
    _warn_of_a_valley(alphas, curves[VALIDATION])
    _report(alphas, curves, float(chosen), evaluations[""], run, title)

    last = points[-1]
    found = {}
    for name, evaluation in evaluations.items():
        if name == VALIDATION:
            continue
        prefix = f"{name}_" if name else ""
        key = evaluation.key_metric
        found[f"fine_tuned_{prefix}{key}"] = last.measured[name].estimates[key]
        ensemble = ensemble_top1(clip, head, ends, chosen, evaluation)
        if ensemble is not None:
            found[f"logit_ensemble_{prefix}top1"] = ensemble
    put(mix(*ends, chosen), clip, head)
    return {**found, "alpha": Estimate(float(chosen), float(chosen), float(chosen))}


def _mix(
    clip: CLIP,
    head: Head | None,
    ends: tuple[State, State],
    merging: DictConfig,
    information: Callable[[], State],
) -> Mix:
    if merging.average == "linear":
        return interpolate
    console.info("measuring how much the answers of both models depend on each weight")
    fishers = []
    for end in ends:
        put(end, clip, head)
        fishers.append(information())
    return functools.partial(fisher_average, fishers=(fishers[0], fishers[1]), floor=merging.fisher.floor)


def _values(points: list[Point], name: str, metric: str) -> list[float]:
    return [point.measured[name].estimates[metric].value for point in points]


def _warn_of_a_valley(alphas: list[float], values: list[float]) -> None:
    middle = min(range(len(alphas)), key=lambda place: abs(alphas[place] - 0.5))
    if values[middle] < min(values[0], values[-1]) - _MARGIN:
        console.warn(
            f"the model at alpha={alphas[middle]:g} is worse than both ends: fine-tuning left the region in "
            "which weights can be mixed; lower optim.lr or train for fewer steps"
        )


def elsewhere(curves: Mapping[str, list[float]]) -> tuple[str, list[float]] | None:
    """The mean over the shifted data, else what is forgotten, by its name; None without either."""
    shifted = {name: values for name, values in curves.items() if name.startswith("shift_")}
    if len(shifted) == 1:
        return next(iter(shifted.items()))
    if shifted:
        return "mean under shift", [sum(each) / len(each) for each in zip(*shifted.values(), strict=True)]
    return ("forgetting", curves["forgetting"]) if "forgetting" in curves else None


def _report(
    alphas: list[float],
    curves: dict[str, list[float]],
    chosen: float,
    own: Evaluation,
    run: Run,
    title: str,
) -> None:
    columns = ["alpha", *(name or "test" for name in curves)]
    rows = list(zip(alphas, *curves.values(), strict=True))
    run.write_text("weight_curve.csv", csv_text(columns, rows))
    data = str(getattr(own.source, "name", "test"))
    drawn: dict[str, Any] = {data: curves[""]}
    drawn |= {name: values for name, values in curves.items() if name not in ("", VALIDATION)}
    other = elsewhere(curves)
    if other is not None:
        drawn.setdefault(*other)
    figure = draw(
        alphas,
        drawn,
        against=None if other is None else (data, other[0]),
        chosen=chosen,
        metric=own.key_metric,
        title=title,
    )
    path = figures.save(figure, run.path("figures", "weight_curve.png"))
    console.info(f"figure {path}")
    run.results({"weight_curve": [dict(zip(columns, row, strict=True)) for row in rows]})
