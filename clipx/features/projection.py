"""The last linear map of a tower, and the features before it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.text import causal_tower


class Projection(NamedTuple):
    """``features = rows @ weight + bias``: weight ``[Do, D]``, bias ``[D]`` or None."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Project rows ``[N, Do]`` to ``[N, D]``."""
        projected = rows @ self.weight.to(rows)
        return projected if self.bias is None else projected + self.bias.to(rows)


def image_projection(clip: CLIP) -> Projection:
    """The projection of an image tower, in float32: ``proj`` of a ViT, ``c_proj`` of a ResNet's attention
    pool, the linear head of a timm tower.

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
            hint="a ViT or ResNet of open_clip does; --method rla needs no projection",
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


def text_projection(clip: CLIP) -> Projection:
    """The projection of a causal text tower, in its own dtype.

    Raises:
        ClipxError: the tower ends in something else.
    """
    found = getattr(causal_tower(clip.model), "text_projection", None)
    if isinstance(found, nn.Linear):
        return Projection(found.weight.detach().T, None if found.bias is None else found.bias.detach())
    if found is None:
        raise ClipxError(
            f"the text tower of {clip.name} does not end in a linear projection",
            hint="that of OpenAI's models does; --method rla trains a map of the image features instead",
        )
    return Projection(found.detach(), None)


@torch.no_grad()
def texts_before_projection(clip: CLIP, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """What the text tower's projection is given for texts: ``[N, Do]``, in its dtype and on its device.

    Raises:
        ClipxError: as ``text_projection``.
    """
    text_projection(clip)
    tower: Any = causal_tower(clip.model)
    kept, rows = tower.text_projection, []
    tower.text_projection = None
    try:
        for first in range(0, len(texts), batch_size):
            tokens = clip.tokenize(list(texts[first : first + batch_size]))
            rows.append(clip.encode_text(tokens.to(clip.device), normalize=False))
    finally:
        tower.text_projection = kept
    return torch.cat(rows)
