"""Training on a part of the patches of an image: at random, or those that another map attends to."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.attention import embedded

MODES = ("attentive", "random", "none")
"""How the patches that are kept are chosen: where a map is high, at random, all."""


def transfer(maps: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map over a crop, seen by crops within it.

    Args:
        maps: ``[B, h, w]``, one a crop.
        boxes: ``[B, 4]``, x0, y0, x1, y1 of the inner crops as shares of the sides of the outer.
        grid: rows and columns of the result.

    Returns:
        ``[B, *grid]``: bilinear values at the cell centres of the inner crop; beyond the outermost centres
        the map goes on as it is there.

    Source: Yang et al. 2023 (A-CLIP), section 3.3, which resizes the map to the pixels of the outer crop,
        cuts and resizes again; the values are the same but for the rounding to pixels.
    """
    height, width = grid
    like: dict[str, Any] = {"dtype": boxes.dtype, "device": boxes.device}
    across = (torch.arange(width, **like) + 0.5) / width
    down = (torch.arange(height, **like) + 0.5) / height
    corner, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    x = corner[:, :1] + sides[:, :1] * across
    y = corner[:, 1:] + sides[:, 1:] * down
    where = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1)
    places = (2 * where - 1).to(maps.dtype)
    found = functional.grid_sample(
        maps[:, None], places, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[:, 0]


def attentive_patches(maps: Tensor, share: float = 0.5, block: int = 2) -> Tensor:
    """The patches of the blocks that a map is highest on.

    Args:
        maps: ``[B, h, w]``, one value a patch.
        share: of the blocks that is kept, in (0, 1]; of n blocks ``floor(n * share) + 1``, at most n.
        block: side of a block, patches; a divisor of h and w.

    Returns:
        indices int64 ``[B, K]`` into the ``h * w`` patches, rising; K is the same for every image.

    Raises:
        ClipxError: a share out of range, or a grid that blocks do not divide.

    Source: Yang et al. 2023 (A-CLIP), section 3.3; ``get_att_mask`` of the published code.
    """
    rows, columns = maps.shape[-2:]
    check_blocks((rows, columns), share, block)
    cells = functional.avg_pool2d(maps[:, None], block)[:, 0]
    kept = cells.flatten(1).topk(_kept(cells[0].numel(), share), dim=1).indices
    top, left = kept // cells.shape[-1] * block, kept % cells.shape[-1] * block
    inside = torch.arange(block, device=maps.device)
    down = (top[..., None] + inside)[..., :, None]
    across = (left[..., None] + inside)[..., None, :]
    return (down * columns + across).flatten(1).sort(dim=1).values


def random_patches(
    images: int, grid: tuple[int, int], share: float = 0.5, block: int = 2, device: Any = None
) -> Tensor:
    """As many patches as ``attentive_patches`` keeps, each image its own, drawn one by one.

    Args:
        images: B.
        grid: rows and columns of the patches.
        share, block: as ``attentive_patches`` takes them; they only say how many.
        device: of the result.

    Returns:
        indices int64 ``[B, K]``, rising.

    Raises:
        ClipxError: as ``attentive_patches``.

    Source: Li et al. 2023 (FLIP), section 3.
    """
    check_blocks(grid, share, block)
    patches = grid[0] * grid[1]
    kept = _kept(patches // block**2, share) * block**2
    return torch.rand(images, patches, device=device).topk(kept, dim=1).indices.sort(dim=1).values


def check_blocks(grid: tuple[int, int], share: float, block: int) -> None:
    """Check that a share of the blocks of a grid can be kept.

    Raises:
        ClipxError: a share out of range, or a grid that blocks do not divide.
    """
    if not 0 < share <= 1:
        raise ClipxError(f"the share of patches kept is {share}, must be above 0 and at most 1")
    if block < 1 or grid[0] % block or grid[1] % block:
        raise ClipxError(
            f"blocks of {block} x {block} patches do not divide a grid of {grid[0]} x {grid[1]}",
            hint="block=1, or a model whose grid is even",
        )


def encode_kept(visual: Any, images: Tensor, kept: Tensor) -> Tensor:
    """What a ViT pools of some of the patches of images, before its projection; the others cost nothing.

    Positions are added before patches are left out, so that each that is kept knows its place.

    Args:
        visual: as ``clipx.models.attention.vision_transformer`` gives it.
        images: normalised, ``[B, 3, H, W]``.
        kept: int64 ``[B, K]``, indices of the patches.

    Returns:
        ``[B, W]``, the class token after the final norm where the tower pools by that.
    """
    tokens, _ = embedded(visual, images)
    patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
    hidden = visual.transformer(torch.cat([tokens[:, :1], patches], dim=1))
    return visual._pool(hidden)[0]


def _kept(cells: int, share: float) -> int:
    return min(cells, math.floor(cells * share) + 1)
