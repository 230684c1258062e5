"""Parameter groups and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from clipx.errors import ClipxError, did_you_mean

SCHEDULES = ("cosine", "constant", "cooldown")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; gains, biases, logit scale and bias do not.

    Raises:
        ClipxError: nothing is trainable.

    Source: Radford et al. 2021, section 2.5 (decay on all weights that are not gains or biases).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    if not decayed and not plain:
        raise ClipxError("every parameter is frozen, there is nothing to train")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def schedule_factor(step: int, steps: int, *, name: str, warmup: int, cooldown: int = 0) -> float:
    """What the learning rate is multiplied by at ``step`` of ``steps``.

    Linear warm-up from ``1/warmup`` to 1 over ``warmup`` steps, then ``cosine`` to 0, ``constant``, or
    ``cooldown``: constant and, over the last ``cooldown`` steps, linearly to 0. Zero would be reached at
    step ``steps``, which is no longer trained.
    """
    if step < warmup:
        return (step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "cooldown":
        return min(1.0, (steps - step) / cooldown)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def check_schedule(name: str, warmup: int, cooldown: int, steps: int) -> None:
    """Check a schedule before anything is loaded.

    Raises:
        ClipxError: unknown name, phases longer than the run, a cooldown without its schedule or the reverse.
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


def set_learning_rate(optimizer: Optimizer, base: Iterable[float], factor: float) -> None:
    """Set every group's learning rate to its base times ``factor``."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor
