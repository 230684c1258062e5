"""Parts that several recipes build from their configuration in the same way."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clipx.config import build, flat
from clipx.data.fields import VIEWS
from clipx.data.loading import is_stream
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.layers import distances_from_top
from clipx.objectives.kept_heads import save_heads
from clipx.recipes.sharing import kept
from clipx.run import Run
from clipx.training.checkpoints import written_whole
from clipx.training.module import TrainingModule
from clipx.training.optimizer import parameter_groups

_EXTRAS = {"negative_captions": "negative_text"}
_LOOKED_AT = 32
"""Examples looked at for one that is not bad."""


def open_source(node: DictConfig, split: str) -> Any:
    """The source of ``conf/data/<name>.yaml`` for a split: train, validation or test."""
    return kept(
        "source",
        (split, repr(OmegaConf.to_container(node, resolve=True))),
        (),
        lambda: build(node, split=split),
    )


def batch_fields(source: Any, semantics: DictConfig | None = None) -> set[str]:
    """Batch fields that a source gives, judged by its first good example; of a stream the usual ones.

    Args:
        source: of training data.
        semantics: the node ``semantics``, by which captions have a meaning.
    """
    fields: set[str] = {"image", "text", "label", "index", *VIEWS}
    if semantics is not None and semantics.get("_target_") is not None:
        fields.add("semantics")
    if is_stream(source):
        return fields
    for place in range(min(len(source), _LOOKED_AT)):
        example = source.examples([place])[0]
        if isinstance(example, dict):
            return fields | {_EXTRAS.get(str(name), str(name)) for name in example} - {"captions", "id"}
    return fields


def build_objectives(
    config: DictConfig, given: Mapping[str, Callable[[], Any]] | None = None
) -> tuple[dict[str, torch.nn.Module], dict[str, float]]:
    """The card's objectives and their weights, by name.

    Args:
        config: the node ``objectives``.
        given: what a card cannot say, such as the classifier that a head starts from: name of an argument ->
            what makes its value, called for objectives that have such an argument.

    Raises:
        ClipxError: a weight that is no number, or below 0; what building an objective raises.
    """
    objectives, weights = {}, {}
    for name, node in config.items():
        options: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
        weights[str(name)] = _weight(str(name), options.pop("weight", 1.0))
        known = parameters_of(options)
        extras = {key: make() for key, make in (given or {}).items() if key in known}
        objectives[str(name)] = build(OmegaConf.create(options), **extras)
    return objectives, weights


def _weight(name: str, weight: Any) -> float:
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ClipxError(
            f"objectives.{name}.weight={weight} must be a number, 0 or more",
            hint=f"objectives.{name}.weight=1",
        )
    return float(weight)


def target_of(node: Mapping[Any, Any]) -> Any:
    """The class or function that a node's ``_target_`` names; None where there is no such thing."""
    from hydra.utils import get_object

    try:
        return get_object(str(node["_target_"]))
    except Exception:
        return None  # building it says what is wrong


def parameters_of(node: Mapping[Any, Any]) -> set[str]:
    """The names of the arguments that a node's target has; none where there is no such target."""
    try:
        return set(inspect.signature(target_of(node)).parameters)
    except (TypeError, ValueError):  # not callable, or built in
        return set()


def build_optimizer(config: DictConfig, module: TrainingModule) -> torch.optim.Optimizer:
    """The optimizer of ``conf/optim/<name>.yaml`` over a module's parameter groups.

    Raises:
        ClipxError: a learning rate that trains nothing, or what ``parameter_groups`` raises.
    """
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    check_learning_rate(options["lr"])
    layer_decay, backbone_decay = options.pop("layer_decay", None), options.pop("backbone_decay", 1.0)
    if layer_decay is None:
        distances = dict.fromkeys((name for name, _ in module.clip.model.named_parameters()), 0)
    else:
        distances = distances_from_top(module.clip.model)
    groups = parameter_groups(
        module,
        options.pop("weight_decay", 0.0),
        lr=options["lr"],
        layer_decay=layer_decay,
        backbone_decay=backbone_decay,
        distances={f"clip.model.{name}": distance for name, distance in distances.items()},
        undecayed=options.pop("undecayed", ()),
    )
    return build(OmegaConf.create(options), groups)


def check_learning_rate(lr: Any) -> None:
    """Check that something would be learnt.

    Raises:
        ClipxError: the learning rate is not a positive number.
    """
    if not isinstance(lr, int | float) or not 0 < lr < math.inf:
        raise ClipxError(f"optim.lr={lr} trains nothing: it must be above 0", hint="optim.lr=1e-4")


def save_model(clip: CLIP, run: Run, objectives: torch.nn.ModuleDict | None = None) -> None:
    """Write the run's ``model/``, whole or not at all; one from an earlier start of the run is replaced.

    Args:
        clip: the model.
        run: where to.
        objectives: by name, that it was trained with: the heads that one gives as ``kept`` are written too.

    Raises:
        OSError: it could not be written.
    """
    trained = {} if objectives is None else dict(objectives.items())
    heads: dict[str, Any] = {name: each.kept for name, each in trained.items() if hasattr(each, "kept")}
    with written_whole(run.path() / "model") as folder:
        clip.save(folder)
        if heads:
            save_heads(folder, heads)


def tracked_settings(config: DictConfig) -> dict[str, Any]:
    """A resolved configuration as ``a.b.c -> plain value``, which every tracker takes."""
    leaves = flat(config)
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in leaves.items()
    }
