"""InfoNCE: each image picks its own caption among all captions of the batch, each caption its image."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.comparison import Comparison, check_cosine
from clipx.models.geometry import COSINE
from clipx.objectives.chunked import at_least_float32, check_chunk_size, log_sums, row_log_sums
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    compare: Comparison = COSINE,
    logit_bias: Tensor | float | None = None,
    targets: Tensor | tuple[Tensor, Tensor] | None = None,
    left_out: Tensor | None = None,
    label_smoothing: float = 0.0,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """The symmetric contrastive loss, the mean of its image-to-text and text-to-image cross-entropies.

    Args:
        image: ``[B, D]`` unit rows, or rows as ``compare`` takes them.
        text: ``[B, D]`` likewise, row i the caption of image i.
        logit_scale: the inverse temperature s = exp(t), > 0.
        compare: how an image and a text are compared.
        logit_bias: added to the logits; a softmax does not see it, but a model that has one keeps it in the
            graph, where DistributedDataParallel looks for it.
        targets: soft targets ``[B, M]``, rows sum to 1, of both directions, or a pair of such, of the images
            and of the texts; None for row i <-> row ``offset + i``.
        left_out: bool ``[B, M]``, candidates that a row is not compared with, the same in both directions.
        label_smoothing: in [0, 1).
        all_image: candidates ``[M, D]`` of the texts, with ``image`` at rows ``offset`` to ``offset + B``;
            None: ``image``.
        all_text: candidates ``[M, D]`` of the images; None: ``text``.
        offset: of this process's rows among the candidates.

    Returns:
        a scalar, 0 or more.

    Raises:
        ClipxError: fewer than two candidates (the loss would be constant), or towers of different width.

    Source: Radford et al. 2021, figure 3; van den Oord et al. 2018, equation 4.
    """
    all_image = image if all_image is None else all_image
    all_text = text if all_text is None else all_text
    check_candidates(image, all_text, compare)
    if targets is None:
        targets = torch.arange(offset, offset + len(image), device=image.device)
    of_images, of_texts = targets if isinstance(targets, tuple) else (targets, targets)
    image_to_text = compare.image_to_text(image, all_text, logit_scale)
    text_to_image = compare.text_to_image(text, all_image, logit_scale)
    if logit_bias is not None:
        image_to_text, text_to_image = image_to_text + logit_bias, text_to_image + logit_bias
    if left_out is not None:
        image_to_text = image_to_text.masked_fill(left_out, -torch.inf)
        text_to_image = text_to_image.masked_fill(left_out, -torch.inf)
    return (
        functional.cross_entropy(image_to_text, of_images, label_smoothing=label_smoothing)
        + functional.cross_entropy(text_to_image, of_texts, label_smoothing=label_smoothing)
    ) / 2


def one_sided_info_nce(
    anchors: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor | float,
    *,
    candidates: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Each anchor picks its positive among those of all: one of the two directions of ``info_nce``.

    Args:
        anchors: ``[B, D]`` unit rows.
        positives: ``[B, D]`` unit rows, row i that of anchor i.
        inverse_temperature: > 0.
        candidates: ``[M, D]`` to pick from, ``positives`` at rows ``offset`` to ``offset + B``; None:
            ``positives``.
        offset: of this process's rows among the candidates.

    Returns:
        a scalar, 0 or more.

    Raises:
        ClipxError: fewer than two candidates, or rows of different width.

    Source: van den Oord et al. 2018, equation 4.
    """
    candidates = positives if candidates is None else candidates
    check_candidates(anchors, candidates)
    wanted = torch.arange(offset, offset + len(anchors), device=anchors.device)
    return functional.cross_entropy(inverse_temperature * anchors @ candidates.T, wanted)


def info_nce_across(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``info_nce`` of this process's rows against those of all processes; collective.

    The mean over processes has the value and the gradient of one process with all rows.

    Raises:
        ClipxError: processes hold batches of different size, or what ``info_nce`` raises.
    """
    check_equal_rows(image)
    return info_nce(
        image,
        text,
        logit_scale,
        logit_bias=logit_bias,
        label_smoothing=label_smoothing,
        all_image=gather_rows(image),
        all_text=gather_rows(text),
        offset=world()[0] * len(image),
    )


def chunked_info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    chunk_size: int,
    logit_bias: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """``info_nce`` of large batches, which scores a few rows at a time and holds no matrix of logits.

    Args:
        chunk_size: rows scored at a time, 1 or more, see ``clipx.objectives.chunked.log_sums``.
        image, text, logit_scale, logit_bias, label_smoothing, all_image, all_text, offset: as ``info_nce``
            takes them.

    Returns:
        a scalar, 0 or more, in float32 or better.

    Raises:
        ClipxError: what ``info_nce`` raises.
    """
    all_image = image if all_image is None else all_image
    all_text = text if all_text is None else all_text
    check_candidates(image, all_text)
    whole = all_image is image and all_text is text
    image, text, all_image, all_text = map(at_least_float32, (image, text, all_image, all_text))
    if whole:  # the logits of one direction are those of the other, transposed
        of_images, of_texts = log_sums(logit_scale * image, text, chunk_size)
    else:
        of_images = row_log_sums(logit_scale * image, all_text, chunk_size)
        of_texts = row_log_sums(logit_scale * text, all_image, chunk_size)
    own = slice(offset, offset + len(image))
    losses = (
        of_images - logit_scale * _wanted(image, all_text, own, label_smoothing),
        of_texts - logit_scale * _wanted(text, all_image, own, label_smoothing),
    )
    loss = torch.stack(losses).mean()
    return loss if logit_bias is None else loss + 0.0 * logit_bias


def _wanted(rows: Tensor, candidates: Tensor, own: slice, label_smoothing: float) -> Tensor:
    """The mean cosine ``[B]`` of rows with their targets: their own candidates, smoothed over all."""
    matches = (rows * candidates[own]).sum(-1)
    return (1 - label_smoothing) * matches + label_smoothing * rows @ candidates.mean(0)


def check_candidates(image: Tensor, all_text: Tensor, compare: Comparison = COSINE) -> None:
    """Check that images ``[B, D]`` can be contrasted with texts ``[M, D]``.

    Raises:
        ClipxError: rows that ``compare`` cannot take, such as of towers of different width, or fewer than two
            texts.
    """
    compare.check(image, all_text)
    if len(all_text) < 2:
        raise ClipxError("a contrastive batch needs at least 2 pairs", hint="raise training.batch_size")


class InfoNCE(nn.Module):
    """The objective of CLIP over the batches of all processes, compared as the model compares.

    With ``local_loss`` and ``gather_with_grad`` (the default) each process scores its own rows against
    everyone's, and the averaged gradient equals that of one process with the whole batch. Without gradient
    and without local loss, the towers' gradient is 1/W of it while the scale's is whole (open_clip's
    default). The third pairing, local without gradient, points elsewhere and is refused.

    Args:
        label_smoothing: in [0, 1).
        local_loss: score only this process's rows.
        gather_with_grad: let gradient flow through the gathered rows.
        chunk_size: rows scored at a time, 0 for all, see ``chunked_info_nce``.

    Raises:
        ClipxError: the third pairing, or ``chunk_size`` below 0.

    Source: Radford et al. 2021; the modes are open_clip's.
    """

    needs = ("image", "text")
    pooled = True
    any_comparison = True

    def __init__(
        self,
        label_smoothing: float = 0.0,
        local_loss: bool = True,
        gather_with_grad: bool = True,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if local_loss and not gather_with_grad:
            raise ClipxError(
                "local_loss=true with gather_with_grad=false gives wrong gradients",
                hint="set gather_with_grad=true",
            )
        check_chunk_size(chunk_size)
        self.label_smoothing = label_smoothing
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.chunk_size = chunk_size

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"infonce": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size, or ``chunk_size`` of a model that does not
                compare by the cosine.
        """
        image, text = encoded.image(), encoded.text()
        check_equal_rows(image)
        all_image = gather_rows(image, self.gather_with_grad)
        all_text = gather_rows(text, self.gather_with_grad)
        offset = world()[0] * len(image)
        if not self.local_loss:
            image, text, offset = all_image, all_text, 0
        if self.chunk_size:
            check_cosine(encoded.comparison, "chunk_size of InfoNCE", "chunk_size=0")
            score = partial(chunked_info_nce, chunk_size=self.chunk_size)
        else:
            score = partial(info_nce, compare=encoded.comparison)
        loss = score(
            image,
            text,
            encoded.logit_scale,
            logit_bias=encoded.logit_bias,
            label_smoothing=self.label_smoothing,
            all_image=all_image,
            all_text=all_text,
            offset=offset,
        )
        return {"infonce": loss}
