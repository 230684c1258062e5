"""Views contrasted through heads and at a temperature of their own, beside the embeddings that are used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP, MAX_LOG_SCALE
from clipx.models.stochastic import blocks_of, dropping
from clipx.objectives.heads import mlp
from clipx.objectives.kept_heads import KeptHeads
from clipx.objectives.multi_view import check_views, view_grid
from clipx.training.encoded import Encoded

PROJECTED_VIEWS = "projected_views"
"""What other objectives call the views of a batch behind these heads."""


@dataclass(frozen=True)
class Projected:
    """Views of a batch behind their heads.

    Attributes:
        images: views ``[B, width]``, unit rows.
        texts: likewise.
        logit_scale: the inverse temperature of the heads, in [1, 100].
        label_smoothing: of the contrast of these views.
    """

    images: list[Tensor]
    texts: list[Tensor]
    logit_scale: Tensor
    label_smoothing: float


class ProjectedViews(nn.Module):
    """``view_grid`` of strongly changed views behind a head for images and one for texts.

    What strong changes blur need not be what the embeddings blur: the heads stand between. They take what a
    tower gives before it becomes a unit row, which every tower has; in the published models they stand beside
    the linear map to the embedding, not behind it. Other objectives find the views as ``projected_views``.
    After training they are kept, for ``clipx.inference.score_ensemble``.
    A text tower that drops a part of what passes it is not the one that a gradient cache would ask.

    Args:
        clip: whose towers are trained.
        images: fields of images.
        texts: fields of captions.
        hidden: width of the two hidden layers of a head.
        width: of what is compared.
        label_smoothing: in [0, 1).
        init_scale: the inverse temperature at the start, in [1, 100].
        text_dropout: of the text tower for these views, see ``dropping``.
        text_drop_path: likewise, the same in all blocks.

    Raises:
        ClipxError: no fields, or others, a scale or probability outside its range, a width below 1, or a text
            tower that cannot drop anything and is to.

    Source: Fini et al. 2023, "Improved baselines for vision-language pre-training", CLIP-rocket.
    """

    gives = (PROJECTED_VIEWS,)

    def __init__(
        self,
        clip: CLIP,
        images: Sequence[str] = ("image_view_1", "image_view_2"),
        texts: Sequence[str] = ("text_view_1", "text_view_2"),
        hidden: int = 4096,
        width: int = 256,
        label_smoothing: float = 0.1,
        init_scale: float = 10.0,
        text_dropout: float = 0.0,
        text_drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_views(images, texts)
        if not 1 <= init_scale <= math.exp(MAX_LOG_SCALE):
            raise ClipxError(
                f"init_scale is {init_scale}, must lie in [1, 100]", hint="10 is a temperature of 0.1"
            )
        for name, share in (("text_dropout", text_dropout), ("text_drop_path", text_drop_path)):
            if not 0 <= share < 1:
                raise ClipxError(f"{name} is {share}, must lie in [0, 1)")
        self.pooled = not (text_dropout or text_drop_path)
        if not self.pooled:
            blocks_of(clip)
        self.images, self.texts = tuple(images), tuple(texts)
        self.needs = self.unnormalised = (*self.images, *self.texts)
        self.widths = (int(clip.model_cfg["embed_dim"]), hidden, hidden, width)
        self.image_head, self.text_head = mlp(self.widths), mlp(self.widths)
        self.log_scale = nn.Parameter(torch.tensor(math.log(init_scale)))
        self.label_smoothing = label_smoothing
        self.text_dropout, self.text_drop_path = text_dropout, text_drop_path

    @property
    def kept(self) -> KeptHeads:
        """The heads and their inverse temperature as they are, in [1, 100], for use after training."""
        # The last step may have left the scale outside the bounds that the next one would have put it in.
        scale = float(self.log_scale.detach().clamp(0.0, MAX_LOG_SCALE).exp())
        return KeptHeads(self.image_head, self.text_head, self.widths, scale)

    def prepare(self, encoded: Encoded) -> None:
        """Put the views through the towers and the heads, before any objective asks for them."""
        if self.training and not self.pooled:
            with dropping(blocks_of(encoded.clip), self.text_dropout, self.text_drop_path):
                for field in self.texts:
                    encoded.features(field)
        features = {field: encoded.features(field) for field in self.needs}
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MAX_LOG_SCALE)
        with torch.autocast(self.log_scale.device.type, enabled=False):
            projected = Projected(
                [functional.normalize(self.image_head(features[field]), dim=-1) for field in self.images],
                [functional.normalize(self.text_head(features[field]), dim=-1) for field in self.texts],
                self.log_scale.exp(),
                self.label_smoothing,
            )
        encoded.give(PROJECTED_VIEWS, projected)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"projected": loss}`` of a batch that has been through ``prepare``.

        Raises:
            ClipxError: processes hold batches of different size.
        """
        views: Projected = encoded.given(PROJECTED_VIEWS)
        encoded.note("projected_scale", views.logit_scale)
        loss = view_grid(views.images, views.texts, views.logit_scale, label_smoothing=views.label_smoothing)
        return {"projected": loss}
