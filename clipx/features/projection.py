"""The last linear map of an image tower, and the features before it."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.models.clip import CLIP


class Projection(NamedTuple):
    """``features = rows @ weight + bias``: weight float32 ``[Do, D]``, bias ``[D]`` or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Project rows ``[N, Do]`` to ``[N, D]``."""
        projected = rows @ self.weight.to(rows)
        return projected if self.bias is None else projected + self.bias.to(rows)


def image_projection(clip: CLIP) -> Projection:
    """The projection of an image tower: ``proj`` of a ViT, ``c_proj`` of a ResNet's attention pool, the
    linear head of a timm tower.

    Raises:
        ClipxError: the tower ends in something else.
    """
    visual: Any = clip.model.visual
    if isinstance(getattr(visual, "proj", None), Tensor):
        return Projection(visual.proj.detach().float(), None)
    linear = _linear(visual)
    if linear is None:
        raise ClipxError(
            f"the image tower of {clip.name} does not end in a linear projection",
            hint="a ViT or ResNet of open_clip does; or a method that needs projected features only",
        )
    bias = None if linear.bias is None else linear.bias.detach().float()
    return Projection(linear.weight.detach().float().T, bias)


def _linear(visual: Any) -> nn.Linear | None:
    pool = getattr(visual, "attnpool", None)
    linear = getattr(pool, "c_proj", None)
    if linear is None:
        linear = getattr(getattr(visual, "head", None), "proj", None)
    return linear if isinstance(linear, nn.Linear) else None


@torch.no_grad()
def before_projection(clip: CLIP, images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """What the image tower's projection is given for uint8 images ``[B, 3, H, W]``: float32 ``[B, Do]``.

    Raises:
        ClipxError: as ``image_projection``.
    """
    image_projection(clip)
    device = clip.device
    with (
        _without_projection(clip),
        torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32),
    ):
        pixels = clip.normalize(images.to(device, non_blocking=True))
        return clip.encode_image(pixels, normalize=False).float()


@contextlib.contextmanager
def _without_projection(clip: CLIP) -> Iterator[None]:
    visual: Any = clip.model.visual
    if isinstance(getattr(visual, "proj", None), Tensor):
        holder, name, instead = visual, "proj", None
    else:
        # The attention pool reads the weights of its projection and never calls it: a map that changes
        # nothing stands in for it.
        linear = _linear(visual)
        assert linear is not None
        pool = getattr(visual, "attnpool", None)
        holder, name = (pool, "c_proj") if pool is not None else (visual.head, "proj")
        instead = nn.Linear(linear.in_features, linear.in_features).to(linear.weight)
        nn.init.eye_(instead.weight)
        nn.init.zeros_(instead.bias)
    kept = getattr(holder, name)
    setattr(holder, name, instead)
    try:
        yield
    finally:
        setattr(holder, name, kept)
