"""Several views of the images against several views of their captions, each pair of views a contrast."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.errors import ClipxError, did_you_mean
from clipx.objectives.infonce import info_nce
from clipx.objectives.masked_language import MASKED_TEXT
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded


def view_grid(
    images: Sequence[Tensor],
    texts: Sequence[Tensor],
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean of ``info_nce`` over all pairs of a view of the images and one of the texts. Collective.

    The mean over processes has the value and the gradient of one process with all rows.

    Args:
        images: views ``[B, D]``, unit rows; one or more.
        texts: views ``[B, D]``, row i of each a caption of image i; one or more.
        logit_scale: the inverse temperature, > 0.
        logit_bias, label_smoothing: as ``info_nce`` takes them.

    Returns:
        a scalar, 0 or more.

    Raises:
        ClipxError: processes hold batches of different size, or what ``info_nce`` raises.
    """
    check_equal_rows(images[0])
    all_images, all_texts = [gather_rows(each) for each in images], [gather_rows(each) for each in texts]
    offset = world()[0] * len(images[0])
    losses = [
        info_nce(
            image,
            text,
            logit_scale,
            logit_bias=logit_bias,
            label_smoothing=label_smoothing,
            all_image=all_image,
            all_text=all_text,
            offset=offset,
        )
        for image, all_image in zip(images, all_images, strict=True)
        for text, all_text in zip(texts, all_texts, strict=True)
    ]
    return torch.stack(losses).mean()


class MultiView(nn.Module):
    """``view_grid`` of fields of a batch, at the temperature of the model.

    Args:
        images: fields of images.
        texts: fields of captions, ``masked_text`` for what ``MaskedLanguage`` makes of them.
        label_smoothing: in [0, 1).

    Raises:
        ClipxError: none, or another field.

    Source: Li et al. 2022 (DeCLIP), section 3.2.2, multi-view supervision.
    """

    pooled = True

    def __init__(
        self,
        images: Sequence[str] = ("image_view_1", "image_view_2"),
        texts: Sequence[str] = ("text_view_1", "text_view_2"),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_views(images, texts)
        self.images, self.texts = tuple(images), tuple(texts)
        self.needs = (*self.images, *self.texts)
        self.label_smoothing = label_smoothing

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"multi_view": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size.
        """
        loss = view_grid(
            [encoded.image(field) for field in self.images],
            [encoded.text(field) for field in self.texts],
            encoded.logit_scale,
            logit_bias=encoded.logit_bias,
            label_smoothing=self.label_smoothing,
        )
        return {"multi_view": loss}


def check_views(images: Sequence[str], texts: Sequence[str]) -> None:
    """Check that names are those of fields of images and of captions, one or more of each.

    Raises:
        ClipxError: naming what is none.
    """
    for kind, given, known in (
        ("images", images, IMAGE_FIELDS),
        ("texts", texts, (*TOKEN_FIELDS, MASKED_TEXT)),
    ):
        if isinstance(given, str) or not given:
            raise ClipxError(f"{kind}={given!r} is no list of fields", hint=f"{kind}=[{known[0]}]")
        for name in given:
            if name not in known:
                raise ClipxError(f"{kind}: there is no such field {name!r}", hint=did_you_mean(name, known))
