"""Linear heads by SGD, one a learning rate, trained side by side on the same batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Of Oquab et al. 2023 (DINOv2), for 256 rows a step."""

MOMENTUM = 0.9
_START = 0.01


def train_heads(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    *,
    rates: Sequence[float] = RATES,
    steps: int = 12_500,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Weights ``[R, C, D]`` and biases ``[R, C]`` of R heads after momentum steps on cosine schedules to 0.

    Args:
        rows: ``[N, D]``.
        labels: int64 ``[N]`` in [0, classes).
        classes: C.
        rates: R of them, for 256 rows a step: scaled by ``batch_size / 256``.
        steps: of every head.
        batch_size: rows a step, all of them where there are fewer.
        seed: of the starts and of the order.

    Source: Oquab et al. 2023 (DINOv2), ``eval/linear.py``, without its augmentation: rows are frozen.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(rows))
    weight = _START * torch.randn(len(rates), classes, rows.shape[1], generator=generator).to(rows)
    bias = rows.new_zeros(len(rates), classes)
    moved_weight, moved_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    peak = torch.tensor(list(rates)).to(rows) * batch_size / 256
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(rows), generator=generator)
        chosen, order = order[:batch_size], order[batch_size:]
        part, own = rows[chosen], labels[chosen]
        slope = (part @ weight.transpose(1, 2) + bias[:, None]).softmax(2)
        slope[:, torch.arange(batch_size), own] -= 1
        slope /= batch_size
        moved_weight = MOMENTUM * moved_weight + slope.transpose(1, 2) @ part
        moved_bias = MOMENTUM * moved_bias + slope.sum(1)
        rate = peak * (1 + math.cos(math.pi * step / steps)) / 2
        weight = weight - rate[:, None, None] * moved_weight
        bias = bias - rate[:, None] * moved_bias
    return weight, bias
