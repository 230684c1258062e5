"""The score ensemble of ``clipx zeroshot``: its settings, the heads a run kept, the curve over weights."""

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clipx import console
from clipx.errors import ClipxError, did_you_mean
from clipx.features.encode import FeatureSet
from clipx.inference.score_ensemble import check_weight, weight_curve
from clipx.models.clip import CLIP
from clipx.objectives.kept_heads import KeptHeads, heads_file, load_heads
from clipx.recipes.frozen import model_arguments
from clipx.reports.figures import curves, save
from clipx.reports.tables import csv_text, markdown
from clipx.run import Run
from clipx.runs import shown


def heads_of(config: DictConfig) -> KeptHeads:
    """The heads that the run of ``model=`` kept, once the settings of ``ensemble`` are checked.

    Args:
        config: with ``ensemble``: weight, weights, heads.

    Raises:
        ClipxError: a weight outside [0, 1] or none to measure, an adapter besides, a model without heads,
            several and not said which, or heads that cannot be read.
    """
    node = config.ensemble
    if not OmegaConf.is_dict(node):
        raise ClipxError(f"ensemble={node} has no weight", hint="ensemble.weight=0.5, or --method zero-shot")
    if not OmegaConf.is_list(node.weights) or not len(node.weights):
        raise ClipxError(f"ensemble.weights={node.weights} is no list", hint="ensemble.weights=[0.0,0.5,1.0]")
    for weight in (node.weight, *node.weights):
        check_weight(weight)
    if config.adapter is not None:
        raise ClipxError(
            f"{config.method} weighs the scores of a model, adapter={config.adapter} has its own",
            hint="leave one of them out",
        )
    arguments = model_arguments(config.model)
    name = str(arguments.get("pretrained") or arguments["name"])
    path = heads_file(name)
    if path is None:
        raise ClipxError(
            f"model={shown(name)} has no heads beside its weights: {config.method} has nothing to weigh",
            hint="clipx pretrain --method improved-baselines keeps them; then "
            "model=pretrain/improved-baselines/latest",
        )
    found = load_heads(path)
    chosen = next(iter(found)) if node.heads is None and len(found) == 1 else str(node.heads)
    if chosen not in found:
        raise ClipxError(
            f"ensemble.heads={node.heads} names none of the heads of {shown(name)}",
            hint=did_you_mean(chosen, found),
        )
    return found[chosen]


def report_weights(
    clip: CLIP,
    features: FeatureSet,
    classifier: Tensor | None,
    config: DictConfig,
    run: Run,
    *,
    retrieve: bool,
) -> str:
    """Measure over the weights; write ``weights.csv``, a figure and results; return the table as Markdown.

    Args:
        clip, features, classifier, retrieve: as ``weight_curve`` takes them.
        config: with ``ensemble``: weight, which the run is of, and weights; and split.
        run: where to.
    """
    weights = [float(weight) for weight in config.ensemble.weights]
    found = weight_curve(clip, weights, features, classifier=classifier, retrieve=retrieve)
    columns = ["weight", *found]
    rows = list(zip(weights, *found.values(), strict=True))
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    run.write_text("weights.csv", csv_text(columns, rows))
    run.results({"weight": float(config.ensemble.weight), "weights": records})
    figure = curves(
        {name: (weights, values) for name, values in found.items()},
        xlabel="weight of the embeddings, the rest is the heads'",
        title=f"{clip.name}, {config.split} split",
    )
    path = save(figure, run.path("figures", "weights.png"))
    console.info(f"figure {path}")
    rounded = [[f"{weight:g}", *(f"{value:.3f}" for value in values)] for weight, *values in rows]
    return markdown(columns, rounded, right=columns)
