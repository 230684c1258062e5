"""Grid search over hyperparameters, from terms that are computed once: never on test, first best wins."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_CELLS_AT_ONCE = 2**21
"""Logits that stand in memory at a time, few enough to stay near the processor."""


class Found(NamedTuple):
    """The first best cell of a grid, by its place, and its accuracy in [0, 1]."""

    place: tuple[int, ...]
    accuracy: float


def first_best(hits: Tensor, rows: int) -> Found | None:
    """The first cell of a grid, in order of its last index, that no other beats; None where all miss.

    Args:
        hits: right answers, integers of any shape.
        rows: out of how many.
    """
    flat = int(hits.flatten().argmax()) if hits.numel() else 0
    best = int(hits.flatten()[flat]) if hits.numel() else 0
    if not best:
        return None
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), hits.shape))
    return Found(place, best / rows)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Rows whose highest logit is that of their label: int64 of the leading shape of ``logits``.

    ``logits`` are ``[..., M, C]``, ``labels`` ``[M]``. Of equal logits the first counts, as in ``argmax``.
    """
    if logits.device.type == "cpu":
        # numpy's takes a third of torch's time along short rows.
        best = torch.from_numpy(np.asarray(logits.detach().numpy().argmax(-1)))
    else:
        best = logits.argmax(-1)
    return (best == labels).sum(-1)


class ZeroShotEnsemble(NamedTuple):
    """``logits = zero_shot + alpha * correction``: what most training-free adapters add up."""

    alpha: float

    def __call__(self, zero_shot: Tensor, correction: Tensor) -> Tensor:
        """Logits ``[M, C]`` of two such; with alpha 0 the zero-shot ones, bit for bit."""
        return zero_shot + self.alpha * correction

    @staticmethod
    def grid(
        zero_shot: Tensor, corrections: Iterable[Tensor], labels: Tensor, alphas: Sequence[float]
    ) -> Tensor:
        """Right answers of every correction (row) at every alpha (column): int64 ``[G, len(alphas)]``.

        Args:
            zero_shot: ``[M, C]``.
            corrections: G of ``[M, C]``, which may be made as they are asked for.
            labels: int64 ``[M]``.
            alphas: any number but none.
        """
        weights = torch.tensor(list(alphas), dtype=zero_shot.dtype, device=zero_shot.device)[:, None, None]
        at_once = max(1, _CELLS_AT_ONCE // max(1, zero_shot.shape[1] * len(weights)))
        counts = []
        for correction in corrections:
            parts = [
                hits(torch.addcmul(zero, weights, add), truth)
                for zero, add, truth in zip(
                    zero_shot.split(at_once),
                    correction.split(at_once),
                    labels.split(at_once),
                    strict=True,
                )
            ]
            counts.append(torch.stack(parts).sum(0))
        return torch.stack(counts)


def steps_below(high: float, steps: int, low: float = 0.1) -> list[float]:
    """``steps`` equal steps from ``low`` towards ``high``, which is left out, as Tip-Adapter's grids do."""
    return [low + step * (high - low) / steps for step in range(steps)]


def linspace(low: float, high: float, steps: int) -> list[float]:
    """``steps`` equally spaced values from ``low`` to ``high``, both included."""
    return torch.linspace(low, high, steps, dtype=torch.float64).tolist()


def spread(grid: Sequence[float]) -> list[float]:
    """The values of a grid given as first, last and number of equally spaced values, both ends included."""
    return linspace(grid[0], grid[1], int(grid[2]))
