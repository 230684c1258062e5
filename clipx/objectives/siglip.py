"""SigLIP: every image-text pair is classified on its own as match or no match; no softmax over the batch."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.comparison import Comparison, check_cosine
from clipx.models.geometry import COSINE
from clipx.objectives.chunked import at_least_float32, check_chunk_size, softplus_sum
from clipx.training.distributed import EXCHANGES, foreign_rows
from clipx.training.encoded import Encoded


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None,
    *,
    compare: Comparison = COSINE,
    negative_only: bool = False,
    chunk_size: int = 0,
) -> Tensor:
    """The sigmoid loss: summed over the texts, averaged over the images.

    Args:
        image: ``[B, D]`` unit rows, or rows as ``compare`` takes them.
        text: ``[M, D]`` likewise; M is B and row i the caption of image i unless ``negative_only``.
        logit_scale: the inverse temperature s = exp(t), > 0.
        logit_bias: added to the logits; -10 at the start makes "no match" the prior. None counts as 0 and
            warns.
        compare: how an image and a text are compared.
        negative_only: no text belongs to any image (a block of texts from another process).
        chunk_size: images scored at a time, so that the peak memory is a few times ``chunk_size * M`` logits;
            0 scores all at once. Of the cosine.

    Returns:
        a scalar, 0 or more, in float32 or better.

    Raises:
        ClipxError: ``chunk_size`` below 0, or above it where ``compare`` is not the cosine; rows that
            ``compare`` cannot take, such as of towers of different width; or unequal numbers of images and
            texts where they are pairs.

    Source: Zhai et al. 2023, equation 1 and algorithm 1, as ``sum softplus(z)`` less the logits of the
        matches, since
    ``-log sigmoid(z) = softplus(z) - z``: no matrix of labels.
    """
    check_chunk_size(chunk_size)
    compare.check(image, text)
    if not negative_only and len(image) != len(text):
        raise ClipxError(f"{len(image)} images and {len(text)} texts are not pairs")
    if logit_bias is None:
        warnings.warn(
            "the sigmoid loss has no logit bias: it starts near N ln 2; set model.init_logit_bias=-10",
            stacklevel=2,
        )
        logit_bias = 0.0
    image, text = at_least_float32(image), at_least_float32(text)
    bias = torch.as_tensor(logit_bias, dtype=image.dtype, device=image.device)
    if chunk_size == 0:
        loss = functional.softplus(compare.image_to_text(image, text, logit_scale) + bias).sum()
    else:
        check_cosine(compare, "chunk_size of the sigmoid loss", "chunk_size=0")
        loss = softplus_sum(logit_scale * image, text, bias, chunk_size)
    if not negative_only:
        loss = loss - (compare.pairs(image, text, logit_scale) + bias).sum()
    return loss / len(image)


class SigLIP(nn.Module):
    """The sigmoid objective over the batches of all processes, pairs compared as the model compares.

    Each process scores its images against its own texts, then against those of every other process as they
    arrive; only texts travel. It divides by its own number of images, so that the averaged gradient equals
    that of one process with the whole batch. The model needs a learnt bias: ``init_logit_bias=-10``, and
    ``init_logit_scale=ln 10``.

    Args:
        dist_impl: how texts travel, see ``clipx.training.distributed.foreign_rows``.
        chunk_size: images scored at a time, 0 for all, see ``sigmoid_loss``.

    Raises:
        ClipxError: unknown ``dist_impl``, or ``chunk_size`` below 0.

    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training".
    """

    needs = ("image", "text")
    pooled = True
    any_comparison = True

    def __init__(self, dist_impl: str = "bidir", chunk_size: int = 0) -> None:
        super().__init__()
        if dist_impl not in EXCHANGES:
            raise ClipxError(f"unknown dist_impl {dist_impl!r}", hint=did_you_mean(dist_impl, EXCHANGES))
        check_chunk_size(chunk_size)
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"siglip": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size.
        """
        image, text = encoded.image(), encoded.text()
        scale, bias, compare = encoded.logit_scale, encoded.logit_bias, encoded.comparison
        loss = sigmoid_loss(image, text, scale, bias, compare=compare, chunk_size=self.chunk_size)
        for foreign in foreign_rows(text, self.dist_impl):
            loss = loss + sigmoid_loss(
                image,
                foreign,
                scale,
                bias,
                compare=compare,
                negative_only=True,
                chunk_size=self.chunk_size,
            )
        return {"siglip": loss}
