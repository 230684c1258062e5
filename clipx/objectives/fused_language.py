"""Masked language modelling helped by the image: blocks of cross-attention show it to the masked stream."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.patches import patch_width
from clipx.models.text import token_tower
from clipx.objectives.masked_language import MaskedLanguage
from clipx.training.encoded import Encoded


class FusionBlock(nn.Module):
    """Words look at patches; at first nothing of what they see is added.

    Args:
        width: of the words.
        patches: width of the patches.
        heads: of the attention, a divisor of ``width``.

    Source: LightCLIP (2023); the gate that starts at zero is Alayrac et al. 2022 (Flamingo), section 2.2.
    """

    def __init__(self, width: int, patches: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patch_norm = nn.LayerNorm(patches)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True, kdim=patches, vdim=patches)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor, patches: Tensor) -> Tensor:
        """``[B, L, width]`` of words ``[B, L, width]`` and patches ``[B, N, patches]``."""
        seen = self.patch_norm(patches)
        found, _ = self.attention(self.norm(hidden), seen, seen, need_weights=False)
        return hidden + self.gate * found


class FusedLanguage(MaskedLanguage):
    """Tells the hidden words of captions from the words before them and from the image.

    The masked captions pass the text tower on their own, with a fusion block after some of its layers, which
    sees the patches of the whole image; the embeddings of captions and of images know nothing of it. The
    tower stays causal, so a word is told from what stands before it and from the image. In use nothing of
    this is needed.

    Args:
        clip: with towers that show their tokens.
        layers: after which share of the text tower's layers a block stands, each in (0, 1].
        share, mask_share, random_share: see ``bert_mask``.

    Raises:
        ClipxError: other towers, layers that are none, or what ``MaskedLanguage`` raises.

    Source: LightCLIP (2023), masked language modelling with a fusion module; the depths are a reading.
    """

    gives = ()

    def __init__(
        self,
        clip: CLIP,
        layers: Sequence[float] = (1 / 3, 2 / 3, 1.0),
        share: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ) -> None:
        super().__init__(clip, "text", share, mask_share, random_share)
        blocks = token_tower(clip).transformer.resblocks
        if not layers or not all(0 < place <= 1 for place in layers):
            raise ClipxError(f"layers={list(layers)} are no shares of a depth", hint="layers=[0.33,0.67,1.0]")
        self.needs = ("image", "text")
        self.raw = ("text",)
        width, heads = self.head.in_features, blocks[0].attn.num_heads
        depths = sorted({max(1, math.floor(place * len(blocks) + 0.5)) for place in layers})
        self.fusions = nn.ModuleDict(
            {str(depth): FusionBlock(width, patch_width(clip), heads) for depth in depths}
        )

    def prepare(self, encoded: Encoded) -> None:
        """Have the image tower show its patches before any objective asks for embeddings."""
        encoded.image_tokens()

    def _embed(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        tower, patches = token_tower(encoded.clip), encoded.image_tokens()
        with encoded.precision():
            embeddings, labels = self.drawn(encoded)
            length, dtype = embeddings.shape[1], tower.transformer.get_cast_dtype()
            hidden = embeddings.to(dtype) + tower.positional_embedding[:length].to(dtype)
            mask = tower.attn_mask[:length, :length]
            for depth, block in enumerate(tower.transformer.resblocks, 1):
                hidden = block(hidden, attn_mask=mask)
                if str(depth) in self.fusions:
                    hidden = self.fusions[str(depth)](hidden, patches)
            features = tower.ln_final(hidden)
        return features.to(torch.promote_types(features.dtype, torch.float32)), labels
