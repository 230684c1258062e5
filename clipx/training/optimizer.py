"""Parameter groups and the learning rate as a function of the step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from clipx.errors import ClipxError, did_you_mean

SCHEDULES = ("cosine", "constant", "cooldown", "cosine-restarts")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    lr: float | None = None,
    layer_decay: float | None = None,
    backbone_decay: float = 1.0,
    distances: Mapping[str, int] | None = None,
    undecayed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices decay; gains, biases, logit scale and bias do not.

    Args:
        module: whose parameters.
        weight_decay: of the matrices.
        lr: the learning rate that ``layer_decay`` and ``backbone_decay`` lower.
        layer_decay: in (0, 1]; a parameter has the rate ``lr * layer_decay ** distance``. None: one rate for
            all.
        backbone_decay: in (0, 1]; a factor of the rate of every parameter that ``distances`` names.
        distances: name of a parameter of ``module`` -> layers between it and the top of its tower; 0 for what
            is not named, such as the heads of objectives.
        undecayed: last parts of the names of matrices that shall not decay either (``positional_embedding``).

    Returns:
        at most two groups a distance, those of what is not named before those of distance 0, the deepest
        last.

    Raises:
        ClipxError: nothing is trainable, or a decay is out of its range.

    Source: Radford et al. 2021, section 2.5 (decay on all weights that are not gains or biases); layer decay
    as in BEiT and FT-CLIP, backbone decay as in FT-CLIP's code.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ClipxError(f"optim.layer_decay={layer_decay} must lie in (0, 1], or be null for none")
    if not 0 < backbone_decay <= 1:
        raise ClipxError(f"optim.backbone_decay={backbone_decay} must lie in (0, 1]; 1 for none")
    known = distances or {}
    found: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim >= 2 and name.rpartition(".")[2] not in undecayed
            distance = 0 if layer_decay is None else known.get(name, 0)
            slowed = backbone_decay < 1 and name in known
            found.setdefault((distance, slowed, not decayed), []).append(parameter)
    if not found:
        raise ClipxError("every parameter is frozen, there is nothing to train", hint="unlock a part: lock.*")
    groups = []
    for (distance, slowed, plain), parameters in sorted(found.items(), key=lambda item: item[0]):
        group: dict[str, Any] = {"params": parameters, "weight_decay": 0.0 if plain else weight_decay}
        if lr is not None and (layer_decay is not None or backbone_decay < 1):
            group["lr"] = lr * (layer_decay or 1.0) ** distance * (backbone_decay if slowed else 1.0)
        groups.append(group)
    return groups


def schedule_factor(
    step: int, steps: int, *, name: str, warmup: int, cooldown: int = 0, cycles: int = 0
) -> float:
    """What the learning rate is multiplied by at ``step`` of ``steps``.

    Linear warm-up from ``1/warmup`` to 1 over ``warmup`` steps, then ``cosine`` to 0; ``constant``;
    ``cooldown``: constant and, over the last ``cooldown`` steps, linearly to 0; or ``cosine-restarts``:
    ``cycles`` cosines of the same length, each from 1 to 0 (Loshchilov and Hutter 2017, "SGDR"). Zero would
    be reached at step ``steps``, which is no longer trained.
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "cooldown":
        return min(1.0, (steps - step) / cooldown)
    rest = max(1, steps - warmup)
    # In whole numbers: a restart that rounding moved would come at the end of the cosine before it.
    passed = (step - warmup) * cycles % rest if name == "cosine-restarts" else step - warmup
    return 0.5 * (1 + math.cos(math.pi * passed / rest))


def check_schedule(name: str, warmup: int, cooldown: int, steps: int, cycles: int = 0) -> None:
    """Check a schedule before anything is loaded.

    Raises:
        ClipxError: unknown name, phases longer than the run, a cooldown or cycles without their schedule or
            the reverse.
    """
    if name not in SCHEDULES:
        raise ClipxError(f"there is no schedule {name!r}", hint=did_you_mean(name, SCHEDULES))
    if not 0 <= warmup <= steps:
        raise ClipxError(f"training.warmup={warmup} must lie between 0 and the run's {steps} steps")
    if (cooldown > 0) != (name == "cooldown"):
        raise ClipxError(
            f"training.schedule={name} with training.cooldown={cooldown}",
            hint="schedule=cooldown needs training.cooldown=STEPS, and only that schedule has one",
        )
    if not 0 <= cooldown <= steps - warmup:
        raise ClipxError(f"training.cooldown={cooldown} must lie between 0 and {steps - warmup}")
    if (cycles > 0) != (name == "cosine-restarts"):
        raise ClipxError(
            f"training.schedule={name} with training.cycles={cycles}",
            hint="schedule=cosine-restarts needs training.cycles=COSINES, and only that schedule has them",
        )
    if not 0 <= cycles <= steps - warmup:
        raise ClipxError(
            f"training.cycles={cycles} must lie between 0 and {steps - warmup}, a step or more each"
        )


def set_learning_rate(optimizer: Optimizer, base: Iterable[float], factor: float) -> None:
    """Set every group's learning rate to its base times ``factor``."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor
