"""A copy of a module that follows it slowly: the momentum encoder of MoCo, BYOL and their kin."""

import copy
import math

import torch
from torch import Tensor, nn


class Momentum(nn.Module):
    """A module's exponential moving average, without gradient, to be asked for targets while it trains.

    Its owner calls ``follow`` after every optimizer step; it is saved and resumed with its owner.

    Args:
        module: whose copy it starts as.
        batch_statistics: batch norms take their statistics from the batch while the owner trains, as in
            BYOL, where the copy is a head whose batch norms would not fit those of the faster head.

    Source: Tarvainen and Valpola 2017 (mean teacher); He et al. 2020 (MoCo); Grill et al. 2020 (BYOL).
    """

    def __init__(self, module: nn.Module, batch_statistics: bool = False) -> None:
        super().__init__()
        self.batch_statistics = batch_statistics
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Momentum":
        """Stay as in use: dropout of a target, and batch statistics not asked for, would be noise in it."""
        super().train(False)
        if self.batch_statistics:
            for each in self.modules():
                if isinstance(each, nn.modules.batchnorm._BatchNorm):
                    each.train(mode)
        return self

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Keep a share of every parameter, take the rest, and all buffers, from ``module``.

        Args:
            module: of the same architecture.
            momentum: the share that is kept, in [0, 1].
        """
        own: list[Tensor] = list(self.module.parameters())
        others = [each.detach().to(mine) for mine, each in zip(own, module.parameters(), strict=True)]
        if own:
            torch._foreach_lerp_(own, others, 1 - momentum)
        for mine, other in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(other)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the copy gives."""
        return self.module(*inputs)


def rising_momentum(first: float, progress: float, last: float = 1.0) -> float:
    """Momentum from ``first`` at the start to ``last`` at the end of training, on half a cosine.

    Args:
        first, last: in [0, 1].
        progress: share of the training that is done, in [0, 1].

    Source: Grill et al. 2020 (BYOL), section 3.3.
    """
    return last - (last - first) * (math.cos(math.pi * progress) + 1) / 2
