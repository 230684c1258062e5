"""CLOOB: embeddings give way to what a memory of the batch recalls for them, and InfoLOOB contrasts these."""

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.clip import MAX_LOG_SCALE
from clipx.objectives.infonce import one_sided_info_nce
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

_POOR_MEMORY = 32
"""Pairs below which a batch is too small to recall from."""


def hopfield_retrieval(queries: Tensor, memory: Tensor, beta: Tensor | float) -> Tensor:
    """What a modern Hopfield network with a stored memory recalls in one step, at length 1: ``[B, D]``.

    A mean of the memory, weighted by a softmax of the cosines: features that occur together in it grow.

    Args:
        queries: ``[B, D]`` unit rows.
        memory: ``[M, D]`` unit rows.
        beta: inverse temperature, > 0; near 0 every query recalls the mean of the memory.

    Source: Ramsauer et al. 2021, equation 3, as in Fürst et al. 2022, equations 3 to 6.
    """
    return functional.normalize(torch.softmax(beta * queries @ memory.T, dim=-1) @ memory, dim=-1)


def info_loob(
    anchors: Tensor,
    positives: Tensor,
    inverse_temperature: Tensor | float,
    *,
    candidates: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Each anchor against the positives of the others: InfoNCE that leaves its own one out of the sum.

    It has no lower bound, and does not saturate where the own positive is already the nearest.

    Args:
        anchors: ``[B, D]`` unit rows.
        positives: ``[B, D]`` unit rows, row i that of anchor i.
        inverse_temperature: 1/tau, > 0.
        candidates: ``[M, D]`` to contrast with, ``positives`` at rows ``offset`` to ``offset + B``; None:
            ``positives``.
        offset: of this process's rows among the candidates.

    Returns:
        ``tau`` times the loss of the paper, a scalar: as in the authors' code, so that its gradient is of the
        same size at any temperature.

    Raises:
        ClipxError: fewer than two candidates, of which one is the positive.

    Source: Poole et al. 2019; Fürst et al. 2022, equation 2.
    """
    candidates = positives if candidates is None else candidates
    _check_candidates(candidates)
    others = (inverse_temperature * anchors @ candidates.T).masked_fill(
        _own(anchors, candidates, offset), -torch.inf
    )
    nearest = torch.logsumexp(others, 1).mean() / inverse_temperature
    return nearest - (anchors * positives).sum(-1).mean()


CONTRASTS = {"info_loob": info_loob, "info_nce": one_sided_info_nce}


def cloob(
    image: Tensor,
    text: Tensor,
    inverse_temperature: Tensor | float,
    beta: Tensor | float | None,
    *,
    contrast: str = "info_loob",
) -> Tensor:
    """The loss of pairs of all processes; collective.

    Images and texts both recall from the images, and images are contrasted there; both recall from the texts,
    and texts are contrasted there. The mean over processes has the value and the gradient of one process with
    all pairs: unlike in the authors' code, gradient flows through what other processes hold.

    Args:
        image: ``[B, D]`` unit rows of this process.
        text: ``[B, D]`` unit rows, row i the caption of image i.
        inverse_temperature: 1/tau of the contrast, > 0.
        beta: of ``hopfield_retrieval``; None contrasts the embeddings as they are.
        contrast: ``info_loob`` or ``info_nce``.

    Returns:
        a scalar, the sum of both sides.

    Raises:
        ClipxError: fewer than two pairs, or processes that hold different numbers of them.

    Source: Fürst et al. 2022, "CLOOB: Modern Hopfield Networks with InfoLOOB Outperform CLIP", equation 7.
    """
    check_equal_rows(image)
    images, texts = gather_rows(image), gather_rows(text)
    offset = world()[0] * len(image)
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for anchors, positives, memory in ((image, text, images), (text, image, texts)):
        if beta is not None:
            anchors, positives = (hopfield_retrieval(rows, memory, beta) for rows in (anchors, positives))
        total = total + CONTRASTS[contrast](
            anchors, positives, inverse_temperature, candidates=gather_rows(positives), offset=offset
        )
    return total


def _own(anchors: Tensor, candidates: Tensor, offset: int) -> Tensor:
    places = torch.arange(len(candidates), device=anchors.device)
    return places[offset : offset + len(anchors), None] == places


def _check_candidates(candidates: Tensor) -> None:
    if len(candidates) < 2:
        raise ClipxError("a contrastive batch needs at least 2 pairs", hint="raise training.batch_size")


class CLOOB(nn.Module):
    """Hopfield retrieval from the batch and InfoLOOB; only for training, in use a CLIP is as ever.

    The inverse temperature is the model's logit scale, which starts from ``logit_scale`` and learns unless
    ``lock.scale`` says otherwise.

    Args:
        beta: of the retrieval, > 0; None for none.
        learn_beta: let it learn, within [1, 100].
        contrast: ``info_loob``, or ``info_nce`` for the ablation.

    Raises:
        ClipxError: ``beta`` is not above 0, or shall learn and is none or outside [1, 100]; unknown contrast.

    Source: Fürst et al. 2022.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(
        self, beta: float | None = 8.0, learn_beta: bool = False, contrast: str = "info_loob"
    ) -> None:
        super().__init__()
        if contrast not in CONTRASTS:
            raise ClipxError(f"there is no contrast {contrast!r}", hint=did_you_mean(contrast, CONTRASTS))
        if beta is not None and not 0 < beta < math.inf:
            raise ClipxError(f"beta={beta} must be above 0", hint="beta=8, or beta=null for no retrieval")
        if learn_beta and (beta is None or not 0 <= math.log(beta) <= MAX_LOG_SCALE):
            raise ClipxError(
                f"beta={beta} cannot learn", hint="learn_beta=true starts from a beta in [1, 100]"
            )
        if beta is not None and beta < 1:
            warnings.warn(f"beta={beta}: every retrieval is near the mean of the batch", stacklevel=2)
        self.contrast = contrast
        self.fixed_beta = beta
        self.log_beta = nn.Parameter(torch.tensor(math.log(beta))) if learn_beta and beta else None

    @property
    def beta(self) -> Tensor | float | None:
        """Of the retrieval, as it stands; None for none."""
        return self.fixed_beta if self.log_beta is None else self.log_beta.exp()

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"cloob": loss}`` of an encoded batch.

        Raises:
            ClipxError: what ``cloob`` raises.
        """
        image, text = encoded.image(), encoded.text()
        pairs = len(image) * world()[1]
        if self.fixed_beta is not None and pairs < _POOR_MEMORY:
            warnings.warn(
                f"a batch of {pairs} pairs is a poor memory; training.batch_size={_POOR_MEMORY} or more",
                stacklevel=2,
            )
        if self.log_beta is not None:
            with torch.no_grad():
                self.log_beta.clamp_(0.0, MAX_LOG_SCALE)
        loss = cloob(image, text, encoded.logit_scale, self.beta, contrast=self.contrast)
        # A bias says nothing here, but DistributedDataParallel looks for it in the graph.
        return {"cloob": loss if encoded.logit_bias is None else loss + 0.0 * encoded.logit_bias}
