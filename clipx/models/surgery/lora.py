"""LoRA: a layer plus a map of low rank, which alone is trained (Hu et al. 2021)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.surgery.sites import TOWERS, find_sites

SCALINGS = ("rsqrt", "linear")


def scale_of(alpha: float, rank: int, scaling: str = "rsqrt") -> float:
    """What the low-rank map is multiplied by: ``alpha / sqrt(rank)``, or ``alpha / rank`` if ``linear``.

    Source: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"; Hu et al.
    2021, section 4.1, for ``linear``.
    """
    return alpha / (math.sqrt(rank) if scaling == "rsqrt" else rank)


def low_rank(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """The weight ``scale * up @ down`` ``[O, I]`` that is added; up ``[O, r]``, down ``[r, I]``."""
    return scale * (up @ down)


class LowRank(nn.Module):
    """``layer(x) + scale * up(down(dropout(x)))``; at first up is zero, and nothing is changed.

    The change is computed in the precision of its own weights, float32 whatever the towers run in: in half
    precision small entries of ``up`` would vanish.

    Args:
        layer: ``nn.Linear``, or ``nn.Conv2d`` of one group, whose kernels count as rows.
        rank: r, 1 or more.
        alpha: above 0.
        dropout: share of the input that the low-rank map does not see in training, in [0, 1).
        scaling: ``rsqrt`` or ``linear``, see ``scale_of``.

    Raises:
        ClipxError: a rank below 1.
    """

    def __init__(
        self, layer: Any, rank: int, *, alpha: float = 1.0, dropout: float = 0.0, scaling: str = "rsqrt"
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ClipxError(f"rank is {rank}, must be 1 or more")
        weight = layer.weight
        self.layer = layer
        self.scale = scale_of(alpha, rank, scaling)
        self.dropout = dropout
        # Never below float32, in which small steps of the optimizer would be lost.
        kind = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        self.down = nn.Parameter(torch.empty(rank, weight[0].numel(), **kind))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, **kind))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer and the change give together."""
        out = self.layer(x)
        with torch.autocast(x.device.type, enabled=False):
            seen = functional.dropout(x.to(self.down.dtype), self.dropout, self.training)
            if isinstance(self.layer, nn.Conv2d):
                kernels = self.down.view(-1, *self.layer.weight.shape[1:])
                convolution = self.layer
                few = functional.conv2d(
                    seen, kernels, None, convolution.stride, convolution.padding, convolution.dilation
                )
                change = functional.conv2d(few, self.up[:, :, None, None])
            else:
                change = functional.linear(functional.linear(seen, self.down), self.up)
        return out + (self.scale * change).to(out.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight of the plain layer that does the same."""
        weight = self.layer.weight
        change = low_rank(self.up, self.down, self.scale)
        return (weight + change.view_as(weight)).to(weight.dtype)

    @torch.no_grad()
    def merged(self) -> Any:
        """The plain layer that does the same; it is the given one, so that this module is used up."""
        self.layer.weight.copy_(self.weight)
        return self.layer


def add_lora(
    clip: CLIP,
    *,
    rank: int = 2,
    alpha: float = 1.0,
    dropout: float = 0.0,
    scaling: str = "rsqrt",
    towers: Sequence[str] = TOWERS,
    targets: Sequence[str] = ("q", "k", "v"),
    blocks: str | Sequence[int] = "all",
) -> dict[str, LowRank]:
    """Put low-rank changes into a model, in place; ``sites.restore`` merges them.

    Args:
        clip: the model; what trains and what does not of its own weights is left as it is.
        rank, alpha, dropout, scaling: see ``LowRank``.
        towers, targets, blocks: where, see ``find_sites``.

    Returns:
        what was put in, by the name of its site.

    Raises:
        ClipxError: see ``find_sites``.

    Source: Zanella and Ben Ayed 2024, "Low-Rank Few-Shot Adaptation of Vision-Language Models".
    """
    changes = {}
    for name, site in find_sites(clip, towers=towers, targets=targets, blocks=blocks).items():
        change = LowRank(site.layer, rank, alpha=alpha, dropout=dropout, scaling=scaling)
        changes[name] = change.train(clip.training)
        site.put(change)
    return changes
