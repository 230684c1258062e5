"""A-CLIP: two views of an image, each the half of its patches that a slow copy of the tower attends to."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.attention import attended, vision_transformer
from clipx.models.clip import CLIP, unit_rows
from clipx.models.surgery.token_drop import (
    MODES,
    attentive_patches,
    check_blocks,
    encode_kept,
    random_patches,
    transfer,
)
from clipx.objectives.heads import mlp, negative_cosine
from clipx.objectives.infonce import info_nce_across
from clipx.objectives.simclr import nt_xent_across
from clipx.training.encoded import Encoded
from clipx.training.momentum import Momentum, rising_momentum

_VIEWS = ("image_view_1", "image_view_2")


class AttentiveMask(nn.Module):
    """Two views of every image, each without a part of its patches, against its caption and each other.

    A slow copy of the image tower looks at a clean crop around both views. Where its class token looks,
    patches of the views are kept; and what it makes of the crop is what the views predict. In use the tower
    sees all patches. The slow copy is of the image tower alone: the text tower's would not enter the loss.

    It chooses what the tower sees, so a gradient cache has no use for it.

    Args:
        clip: with a ViT of open_clip for an image tower.
        mode: ``attentive``, ``random`` (as many patches, drawn one by one), ``none`` (all of them).
        share: of the blocks of patches that is kept, in (0, 1], see ``attentive_patches``.
        block: side of a block, patches.
        simclr: weight of the term in which views of one image find each other among all, 0 or more; 0 leaves
            out its head too.
        byol: weight of the term in which views predict the slow copy's features of the crop, likewise.
        temperature: of ``simclr``, above 0.
        hidden: width of the hidden layers of the heads.
        width: of what the heads give.
        momentum: the share of the slow copy that a step leaves at first, in [0, 1]; it rises to 1.
        cover_scale: side of the crop as the slow copy sees it, as a share of the side of the model's images,
            in (0, 1]; 0.5 is A-CLIP-eff.

    Raises:
        ClipxError: another tower, an unknown mode, a grid that the blocks do not divide, or a number out of
            range.

    Source: Yang et al. 2023, "Attentive Mask CLIP". Of the released code not taken over: ``simclr`` between
    a view and itself, and a crop that may miss a part of a view. That the slow tower of A-CLIP-eff sees half
    the side is a reading of its lower resolution, and so are interpolated positions there.
    """

    def __init__(
        self,
        clip: CLIP,
        mode: str = "attentive",
        share: float = 0.5,
        block: int = 2,
        simclr: float = 1.0,
        byol: float = 2.0,
        temperature: float = 0.1,
        hidden: int = 4096,
        width: int = 256,
        momentum: float = 0.996,
        cover_scale: float = 1.0,
    ) -> None:
        super().__init__()
        visual = vision_transformer(clip, "attentive-mask")
        if mode not in MODES:
            raise ClipxError(f"there is no mode {mode!r}", hint=did_you_mean(mode, MODES))
        for name, weight in (("simclr", simclr), ("byol", byol)):
            if not weight >= 0:
                raise ClipxError(f"{name} is {weight}, must be 0 or more")
        if not temperature > 0:
            raise ClipxError(f"temperature is {temperature}, must be above 0")
        if not 0 <= momentum <= 1:
            raise ClipxError(f"momentum is {momentum}, must lie in [0, 1]", hint="0.996")
        if not 0 < cover_scale <= 1:
            raise ClipxError(f"cover_scale is {cover_scale}, must be above 0 and at most 1", hint="1, or 0.5")
        self.grid = tuple(visual.grid_size)
        check_blocks(self.grid, share, block)
        self.mode, self.share, self.block = mode, share, block
        self.simclr, self.byol, self.temperature = simclr, byol, temperature
        self.momentum, self.cover_scale = momentum, cover_scale

        features = len(visual.proj)
        self.contrasted = mlp([features, hidden, hidden, width]) if simclr else None
        self.projector = mlp([features, hidden, width]) if byol else None
        self.predictor = mlp([width, hidden, width]) if byol else None
        seen = mode == "attentive" or self.projector is not None
        self.slow_tower = Momentum(visual) if seen else None
        # Statistics of batch norm that the fast head has gathered would not fit the slow one.
        head = self.projector
        self.slow_projector = None if head is None else Momentum(head, batch_statistics=True)
        cover = ("cover_view",) if seen else ()
        boxes = ("view_boxes",) if mode == "attentive" else ()
        self.needs = ("text", *_VIEWS, *cover, *boxes)
        self.raw = (*_VIEWS, *cover)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"infonce": loss, "simclr": loss, "byol": loss}`` of an encoded batch, times their weights."""
        visual = vision_transformer(encoded.clip, "attentive-mask")
        with encoded.precision():
            cover, maps = self._looked_at(encoded)
            pooled = self._pooled(encoded, visual, maps)
            rows = unit_rows(pooled @ visual.proj)
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        text, scale, bias = encoded.text(), encoded.logit_scale, encoded.logit_bias
        first, second = (info_nce_across(view, text, scale, logit_bias=bias) for view in rows.chunk(2))
        losses = {"infonce": (first + second) / 2}
        if self.contrasted is not None:
            one, other = self.contrasted(pooled).chunk(2)
            losses["simclr"] = self.simclr * nt_xent_across(one, other, self.temperature)
        if self.projector is not None and self.predictor is not None and self.slow_projector is not None:
            assert cover is not None
            with torch.no_grad():
                wanted = self.slow_projector(cover.to(pooled.dtype))
            predicted = self.predictor(self.projector(pooled))
            losses["byol"] = self.byol * (2 + 2 * negative_cosine(predicted, wanted.repeat(2, 1)))
        return losses

    def after_step(self, clip: CLIP, progress: float) -> None:
        """Let the slow copies follow."""
        share = rising_momentum(self.momentum, progress)
        if self.slow_tower is not None:
            self.slow_tower.follow(vision_transformer(clip, "attentive-mask"), share)
        if self.slow_projector is not None and self.projector is not None:
            self.slow_projector.follow(self.projector, share)

    @torch.no_grad()
    def _looked_at(self, encoded: Encoded) -> tuple[Tensor | None, Tensor | None]:
        """What the slow tower pools of the crop ``[B, W]``, and where it looks ``[B, h, w]``."""
        if self.slow_tower is None:
            return None, None
        visual: Any = self.slow_tower.module
        images = encoded.clip.normalize(encoded["cover_view"])
        if self.cover_scale != 1:
            size = [round(side * self.cover_scale) for side in images.shape[-2:]]
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        seen = attended(visual, images)
        return visual._pool(seen.hidden)[0], seen.map()

    def _pooled(self, encoded: Encoded, visual: Any, maps: Tensor | None) -> Tensor:
        """What the tower pools of the patches that are kept: ``[2B, W]``, first views before second."""
        images = encoded.clip.normalize(torch.cat([encoded[field] for field in _VIEWS]))
        if self.mode == "attentive":
            assert maps is not None
            boxes = encoded["view_boxes"].transpose(0, 1).flatten(0, 1)
            kept = attentive_patches(transfer(maps.repeat(2, 1, 1), boxes, self.grid), self.share, self.block)
        elif self.mode == "random":
            kept = random_patches(len(images), self.grid, self.share, self.block, images.device)
        else:
            kept = torch.arange(self.grid[0] * self.grid[1], device=images.device).expand(len(images), -1)
        return encode_kept(visual, images, kept)
