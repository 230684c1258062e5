"""Where the class token of a ViT looks: its attention over the patches, layer by layer and head by head."""

from typing import Any, NamedTuple

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError


class Attended(NamedTuple):
    """What a ViT makes of images, and where its class token looked on the way.

    Attributes:
        hidden: ``[B, 1 + N, W]``, the last block's class token and patches, before any final norm.
        attention: ``[layers, B, heads, N]``, shares of the class token's attention that fall on the patches,
            0 or more; what is missing to 1 falls on itself.
        grid: rows and columns of the patches, whose product is N.
    """

    hidden: Tensor
    attention: Tensor
    grid: tuple[int, int]

    def map(self) -> Tensor:
        """The attention averaged over layers and heads: ``[B, rows, columns]``."""
        return self.attention.mean((0, 2)).unflatten(-1, self.grid)


def attended(visual: Any, images: Tensor) -> Attended:
    """Run a ViT and keep the attention of its class token.

    Args:
        visual: as ``vision_transformer`` gives it.
        images: normalised, ``[B, 3, H, W]``; of another size than the tower's its positions are interpolated.

    Raises:
        ClipxError: blocks whose attention is not ``nn.MultiheadAttention``, or images too small for a patch.
    """
    hidden, grid = embedded(visual, images)
    shares = []
    for block in visual.transformer.resblocks:
        shares.append(_class_attention(block, hidden))
        hidden = block(hidden)
    return Attended(hidden, torch.stack(shares), grid)


def embedded(visual: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Class token and patches with their positions, as the first block takes them, and the patches' grid.

    Args:
        visual: as ``vision_transformer`` gives it.
        images: normalised, ``[B, 3, H, W]``, of any size that holds a patch.

    Returns:
        ``[B, 1 + N, W]``, and (rows, columns) with N their product.

    Raises:
        ClipxError: images too small for a patch.
    """
    if any(side < patch for side, patch in zip(images.shape[-2:], visual.patch_size, strict=True)):
        raise ClipxError(f"images of {list(images.shape[-2:])} hold no patch of {list(visual.patch_size)}")
    cells = visual.conv1(images)
    grid = (cells.shape[-2], cells.shape[-1])
    patches = cells.flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([first, patches], dim=1)
    return visual.ln_pre(tokens + _positions(visual, grid).to(tokens.dtype)), grid


def vision_transformer(clip: nn.Module, purpose: str) -> Any:
    """The image tower of a CLIP, if it is open_clip's own ViT.

    Raises:
        ClipxError: it is another, naming the ``purpose`` it cannot serve.
    """
    visual = clip.model.get_submodule("visual")  # type: ignore[union-attr]
    if not isinstance(visual, VisionTransformer):
        raise ClipxError(
            f"{purpose} needs a ViT of open_clip, that of {clip.name} is a {type(visual).__name__}",
            hint="model=tiny-vit, or model=ViT-B-16",
        )
    return visual


def _positions(visual: Any, grid: tuple[int, int]) -> Tensor:
    positions = visual.positional_embedding
    if grid == tuple(visual.grid_size):
        return positions
    # As open_clip fits those of a checkpoint to another resolution.
    square = positions[1:].T.unflatten(1, visual.grid_size)[None]
    resized = functional.interpolate(square, grid, mode="bicubic", antialias=True)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def _class_attention(block: Any, hidden: Tensor) -> Tensor:
    """The softmax row ``[B, heads, N]`` of the class token, its own column left out."""
    attention = block.attn
    if type(attention) is not nn.MultiheadAttention or attention.in_proj_weight is None:
        raise ClipxError(
            f"the attention of a {type(attention).__name__} cannot be read",
            hint="a tower of plain blocks, as in ViT-B-16",
        )
    width, heads = hidden.shape[-1], attention.num_heads
    normed = block.ln_1(hidden)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = functional.linear(normed[:, :1], weight[:width], None if bias is None else bias[:width])
    part = slice(width, 2 * width)
    keys = functional.linear(normed, weight[part], None if bias is None else bias[part])
    query, keys = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, keys))
    scores = query @ keys.transpose(-2, -1) / (width // heads) ** 0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.softmax(-1)[:, :, 0, 1:]
