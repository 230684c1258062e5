"""Each image picks another view of itself among those of the batch, each caption one of its own."""

from torch import Tensor, nn

from clipx.objectives.infonce import one_sided_info_nce
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded


class SecondView(nn.Module):
    """``one_sided_info_nce`` of images with their views and of captions with theirs, the mean of both.

    Over the batches of all processes, in the space and at the temperature of the model, without heads.

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
            offset, views = world()[0] * len(rows), gather_rows(view)
            losses.append(
                one_sided_info_nce(rows, view, encoded.logit_scale, candidates=views, offset=offset)
            )
        return {"second_view": (losses[0] + losses[1]) / 2}
