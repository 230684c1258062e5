"""Each image picks another view of itself among those of the batch, each caption one of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.objectives.infonce import check_candidates
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded


def pick_view(
    rows: Tensor,
    views: Tensor,
    logit_scale: Tensor | float,
    *,
    offset: int = 0,
) -> Tensor:
    """The cross-entropy of rows that pick their own view among all, one direction only.

    Args:
        rows: ``[B, D]`` unit rows.
        views: ``[M, D]`` unit rows, of which those from ``offset`` show the same as ``rows``.
        logit_scale: the inverse temperature, > 0.
        offset: of this process's rows among the views.

    Returns:
        a scalar, 0 or more.

    Source: Zhang et al. 2025 (RankCLIP), appendix; after SimCLR.
    """
    own = torch.arange(offset, offset + len(rows), device=rows.device)
    return functional.cross_entropy(logit_scale * rows @ views.T, own)


class SecondView(nn.Module):
    """``pick_view`` of images and of captions, on average, over the batches of all processes.

    In the space and at the temperature that images and captions are compared in, without heads.

    Source: the ``inmodal`` switch of RankCLIP's code.
    """

    needs = ("image", "text", "image_view_1", "text_view_1")
    pooled = True

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"second_view": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size, or there are fewer than two pairs.
        """
        losses = []
        for rows, view in (
            (encoded.image("image"), encoded.image("image_view_1")),
            (encoded.text("text"), encoded.text("text_view_1")),
        ):
            check_equal_rows(rows)
            views = gather_rows(view)
            check_candidates(rows, views)
            losses.append(pick_view(rows, views, encoded.logit_scale, offset=world()[0] * len(rows)))
        return {"second_view": (losses[0] + losses[1]) / 2}
