"""Training small heads on cached features, several tasks (seeds) at once along a leading axis.

Tasks of the same shape share every matrix product, and no number: each has its own parameters, its own loss,
and an optimizer that works entry by entry. What comes out is what each would have come to alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import Support, checked
from clipx.adapters.protocol import copy, fit


class Task(NamedTuple):
    """What ``fit`` is given, as one thing."""

    features: Tensor
    labels: Tensor
    text_classifier: Tensor
    logit_scale: float
    validation: tuple[Tensor, Tensor] | None = None
    groups: Tensor | None = None
    norms: Tensor | None = None
    projection: tuple[Tensor, Tensor | None] | None = None


def fit_many(adapter: Any, tasks: Sequence[Task]) -> list[Any]:
    """Fit copies of an adapter, one a task: tasks of the same shapes together where it can, others apart.

    Args:
        adapter: any; one with a method ``learn(tasks) -> [learnt attributes of each]`` trains several tasks
            at once, another is fitted task by task.
        tasks: any number.

    Returns:
        fitted adapters, in the order of the tasks.

    Raises:
        ClipxError: as ``fit`` does.
    """
    fitted = [copy(adapter) for _ in tasks]
    if not hasattr(adapter, "learn"):
        for one, task in zip(fitted, tasks, strict=True):
            given = {name: value for name, value in task._asdict().items() if value is not None}
            fit(one, **given)
        return fitted
    for places in _alike(tasks):
        for place, state in zip(places, adapter.learn([tasks[place] for place in places]), strict=True):
            vars(fitted[place]).update(state)
    return fitted


def _alike(tasks: Sequence[Task]) -> list[list[int]]:
    """Places of the tasks that may share a leading axis."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for place, task in enumerate(tasks):
        views = None if task.groups is None else tuple(task.groups.unique(return_counts=True)[1].tolist())
        shape, classes = tuple(task.features.shape), tuple(task.text_classifier.shape)
        kind = (shape, classes, task.features.dtype, task.features.device, float(task.logit_scale), views)
        kinds.setdefault(kind, []).append(place)
    return list(kinds.values())


def checked_task(task: Task) -> Support:
    """Check a task of unit rows, see ``checks.checked``.

    Raises:
        ClipxError: naming what is wrong.
    """
    return checked(
        task.features,
        task.labels,
        task.text_classifier,
        logit_scale=task.logit_scale,
        validation=task.validation,
        groups=task.groups,
    )


def half_cosine(step: int, steps: int) -> float:
    """A share that falls from 1 at step 0 on half a cosine to 0 after the last of ``steps``."""
    return (1 + math.cos(math.pi * step / max(1, steps))) / 2


def minimise(
    losses: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    rate: Callable[[int, int], float] = half_cosine,
    after: Callable[[int], None] | None = None,
) -> None:
    """Take optimizer steps down the losses of all tasks.

    Args:
        losses: of every task ``[B]`` at a step; their sum is differentiated, so that no task feels another.
        optimizer: over the parameters.
        steps: how many, 0 or more.
        rate: share of the learning rate at a step of so many.
        after: told each step's number once it is taken, without gradients.
    """
    for step in _at_rates(optimizer, steps, rate):
        optimizer.zero_grad()
        with torch.enable_grad():
            losses(step).sum().backward()
        optimizer.step()
        if after is not None:
            with torch.no_grad():
                after(step)


@torch.no_grad()
def descend(
    gradient: Callable[[int], Tensor],
    trained: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    rate: Callable[[int, int], float] = half_cosine,
) -> None:
    """Take optimizer steps along a gradient that is written out: small heads spend most of a step on tracing.

    Args:
        gradient: of ``trained``, as it is at a step.
        trained: what the optimizer is over.
        optimizer: over it alone.
        steps: how many, 0 or more.
        rate: share of the learning rate at a step of so many.
    """
    for step in _at_rates(optimizer, steps, rate):
        trained.grad = gradient(step)
        optimizer.step()


def _at_rates(
    optimizer: torch.optim.Optimizer, steps: int, rate: Callable[[int, int], float]
) -> Iterator[int]:
    full = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        share = rate(step, steps)
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * share
        yield step


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy ``[B]`` of each task, from logits ``[B, N, C]`` and labels int64 ``[B, N]``."""
    return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def parameter(value: Tensor) -> Tensor:
    """A copy of a tensor to be trained: the original, often a model's own weight, stays as it is."""
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
