"""Singular value fine-tuning: a weight keeps its singular vectors, and its singular values are trained."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.surgery.sites import TOWERS, find_sites


def decompose(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``weight = left @ diag(values) @ right``, values falling, computed in float64.

    Args:
        weight: ``[O, I, ...]``; trailing dimensions, those of a kernel, count as columns.

    Returns:
        left ``[O, r]``, values ``[r]``, right ``[r, I]`` with ``r = min(O, I)``, in the dtype of the weight,
        or float32 where that is shorter.
    """
    parts = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
    left, values, right = (part.to(torch.promote_types(weight.dtype, torch.float32)) for part in parts)
    return left, values, right


def shifted(weight: Tensor, left: Tensor, right: Tensor, shift: Tensor) -> Tensor:
    """``weight + left @ diag(shift) @ right``: the weight whose singular values have moved by ``shift``.

    Where nothing has moved it is the very weight, which a reconstruction would only come near to.
    """
    return (weight + ((left * shift) @ right).view_as(weight)).to(weight.dtype)


class SingularValues(nn.Module):
    """A layer of which the singular values are trained; they may become negative.

    Args:
        layer: ``nn.Linear``, or ``nn.Conv2d`` of one group, whose kernels count as rows.
        share: of the singular values that are trained, the largest, in (0, 1]; others stay as they are.

    Raises:
        ClipxError: a share out of range.
    """

    left: Tensor
    start: Tensor
    right: Tensor

    def __init__(self, layer: Any, share: float = 1.0) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ClipxError(f"share is {share}, must be above 0 and at most 1")
        self.layer = layer
        left, values, right = decompose(layer.weight)
        trained = max(1, int(share * len(values)))
        # Contiguous copies: parts of a decomposition are laid out by columns, and keep all of it alive.
        self.register_buffer("left", left[:, :trained].clone(memory_format=torch.contiguous_format))
        self.register_buffer("start", values[:trained].clone())
        self.register_buffer("right", right[:trained].clone(memory_format=torch.contiguous_format))
        self.values = nn.Parameter(values[:trained].clone())

    def forward(self, x: Tensor) -> Tensor:
        """What the layer with its singular values as they are now gives."""
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, self.weight, self.layer.bias)
        rows = x.numel() // x.shape[-1]
        if 2 * rows >= len(self.values):
            return functional.linear(x, self.weight, self.layer.bias)
        # So few rows are sent through the factors faster than the weight is made of them.
        with torch.autocast(x.device.type, enabled=False):
            inside = functional.linear(x.to(self.right.dtype), self.right) * (self.values - self.start)
            change = functional.linear(inside, self.left)
        out = self.layer(x)
        return out + change.to(out.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight of the plain layer that does the same, never made in half precision."""
        with torch.autocast(self.left.device.type, enabled=False):
            return shifted(self.layer.weight, self.left, self.right, self.values - self.start)

    @torch.no_grad()
    def merged(self) -> Any:
        """The plain layer that does the same; it is the given one, so that this module is used up."""
        self.layer.weight.copy_(self.weight)
        return self.layer


def train_singular_values(
    clip: CLIP,
    *,
    share: float = 1.0,
    towers: Sequence[str] = TOWERS,
    targets: Sequence[str] = ("q", "k", "v", "o", "mlp"),
    blocks: str | Sequence[int] = "all",
) -> dict[str, SingularValues]:
    """Make singular values of a model's weights trainable, in place; ``sites.restore`` merges them.

    Args:
        clip: the model; what trains and what does not of its own weights is left as it is.
        share: see ``SingularValues``.
        towers, targets, blocks: where, see ``find_sites``.

    Returns:
        what was put in, by the name of its site.

    Raises:
        ClipxError: see ``find_sites``.

    Source: Sun et al. 2022, "Singular Value Fine-tuning"; for CLIP: Koleilat et al. 2025, "Singular Value
    Few-shot Adaptation of Vision-Language Models".
    """
    changes = {}
    for name, site in find_sites(clip, towers=towers, targets=targets, blocks=blocks).items():
        changes[name] = SingularValues(site.layer, share).train(clip.training)
        site.put(changes[name])
    return changes
