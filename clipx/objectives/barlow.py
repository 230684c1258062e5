"""Barlow Twins across images and texts: numbers of two embeddings agree one by one, and only so."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipx.models.clip import CLIP
from clipx.objectives.heads import mlp
from clipx.objectives.simsiam import check_pairs, kind_of
from clipx.training.distributed import sum_across, world
from clipx.training.encoded import Encoded

ACROSS = (
    ("image", "text"),
    ("image_view_1", "text_view_1"),
    ("image_view_1", "text_view_2"),
    ("image_view_2", "text_view_1"),
    ("image_view_2", "text_view_2"),
)
"""The image with its caption, and each view of the one with each of the other."""


def redundancy(first: Tensor, second: Tensor, off_diagonal: float = 5e-3) -> Tensor:
    """How far the cross-correlation of two embeddings is from the identity. Collective.

    The mean over processes has the value and the gradient of one process with all rows.

    Args:
        first: ``[B, D]``, of mean 0 and variance 1 in every column where the correlation is meant.
        second: ``[B, D]``, row i belongs to row i.
        off_diagonal: weight of what lies off the diagonal, 0 or more.

    Returns:
        a scalar, 0 or more: the sum of weighted squares.

    Source: Zbontar et al. 2021 (Barlow Twins), equation 1.
    """
    correlation = sum_across(first.T @ second) / (world()[1] * len(first))
    squares = (correlation - torch.eye(len(correlation), dtype=first.dtype, device=first.device)).square()
    on_diagonal = squares.diagonal().sum()
    return on_diagonal + off_diagonal * (squares.sum() - on_diagonal)


class Barlow(nn.Module):
    """The mean ``redundancy`` of pairs of fields behind a projector for images and one for texts.

    They take what a tower gives before it becomes a unit row.

    Args:
        clip: whose towers are trained.
        pairs: of fields of images or texts.
        hidden: width of the two hidden layers of a projector.
        width: of the projections.
        off_diagonal: as ``redundancy`` takes it.

    Raises:
        ClipxError: no pairs, other fields, or a width below 1.

    Source: Fini et al. 2023, "Improved baselines for vision-language pre-training", BarLIP.
    """

    pooled = True

    def __init__(
        self,
        clip: CLIP,
        pairs: Sequence[Sequence[str]] = ACROSS,
        hidden: int = 3000,
        width: int = 8192,
        off_diagonal: float = 5e-3,
    ) -> None:
        super().__init__()
        self.pairs = [tuple(pair) for pair in pairs]
        check_pairs(self.pairs)
        self.needs = self.unnormalised = tuple(dict.fromkeys(field for pair in self.pairs for field in pair))
        self.off_diagonal = off_diagonal
        widths = [int(clip.model_cfg["embed_dim"]), hidden, hidden, width]
        kinds = sorted({kind_of(field) for field in self.needs})
        self.projectors = nn.ModuleDict({kind: mlp(widths, last_norm=True) for kind in kinds})

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"barlow": loss}`` of an encoded batch."""
        views = {field: self.projectors[kind_of(field)](encoded.features(field)) for field in self.needs}
        losses = [redundancy(views[first], views[second], self.off_diagonal) for first, second in self.pairs]
        return {"barlow": torch.stack(losses).mean()}
