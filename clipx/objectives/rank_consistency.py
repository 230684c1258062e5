"""RankCLIP: an image and its text rank the rest of the batch in the same order."""

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.objectives.infonce import check_candidates
from clipx.objectives.listmle import list_mle
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

DIVISOR = 32
"""What the published code divides either term by."""


def cross_modal_consistency(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    eps: float = 1e-10,
    first: Tensor | None = None,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
) -> Tensor:
    """How far the order of all texts after an image is from that of all images after its text.

    Args:
        image: ``[B, D]`` unit rows.
        text: ``[B, D]`` unit rows, row i the caption of image i.
        logit_scale: the inverse temperature, > 0.
        eps, first: as ``list_mle`` takes them.
        all_image, all_text: the pairs ``[M, D]`` that are ranked; None: ``image`` and ``text``.

    Returns:
        a scalar, the sum of both directions.

    Source: Zhang et al. 2025 (RankCLIP), section 3.3.
    """
    image_to_text = logit_scale * image @ (text if all_text is None else all_text).T
    text_to_image = logit_scale * text @ (image if all_image is None else all_image).T
    return _either_way(image_to_text, text_to_image, eps, first)


def in_modal_consistency(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    eps: float = 1e-10,
    first: Tensor | None = None,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
) -> Tensor:
    """How far the order of all images after an image is from that of all texts after its text.

    Each is the first of its own order. Arguments and result as ``cross_modal_consistency`` has them.

    Source: Zhang et al. 2025 (RankCLIP), section 3.2.
    """
    among_images = logit_scale * image @ (image if all_image is None else all_image).T
    among_texts = logit_scale * text @ (text if all_text is None else all_text).T
    return _either_way(among_images, among_texts, eps, first)


def _either_way(one: Tensor, other: Tensor, eps: float, first: Tensor | None) -> Tensor:
    return list_mle(one, other, eps=eps, first=first) + list_mle(other, one, eps=eps, first=first)


def ramp(progress: Tensor | float, slope: float, most: float) -> Tensor | float:
    """A weight that grows by ``slope`` over the training, from 0, and no further than ``most``.

    Args:
        progress: share of the training that is done, in [0, 1].
    """
    grown = slope * progress
    return grown.clamp(max=most) if isinstance(grown, Tensor) else min(grown, most)


class RankConsistency(nn.Module):
    """Consistency of rankings across and within the modalities, over the batches of all processes.

    A term stands on lists as long as the batch, and is divided by that length and by 32, so that it is of
    the size of a softmax over single items; its weight grows with the training, since rankings mean little
    before pairs are told apart. Goes beside ``infonce``.

    Args:
        cross_modal: the order of texts after an image against that of images after its text.
        in_modal: the order of images after an image against that of texts after its text.
        slope: growth of the weight over the training, above 0; 3 reaches 2 after two thirds of it.
        most: the weight grows no further, above 0.
        eps: see ``list_mle``; where the logit scale exceeds 20 it matters.
        shuffle_ties: equal items, such as captions that occur twice, are put in an order that is drawn anew
            every step; else in that of the batch.

    Raises:
        ClipxError: neither kind of ranking, or an argument outside its range.

    Source: Zhang et al. 2025, "RankCLIP: Ranking-Consistent Language-Image Pretraining"; divisor, ramp and
        eps are those of the code, whose ramp steps by epochs where this one does by optimizer steps.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(
        self,
        cross_modal: bool = True,
        in_modal: bool = True,
        slope: float = 3.0,
        most: float = 2.0,
        eps: float = 1e-10,
        shuffle_ties: bool = True,
    ) -> None:
        super().__init__()
        if not (cross_modal or in_modal):
            raise ClipxError(
                "rank consistency of neither cross-modal nor in-modal rankings is nothing",
                hint="cross_modal=true, in_modal=true, or both",
            )
        if slope <= 0 or most <= 0:
            raise ClipxError(f"slope={slope} and most={most} must be above 0", hint="slope=3 most=2")
        if not 0 <= eps < 1:
            raise ClipxError(f"eps is {eps}, must lie in [0, 1)")
        terms = {"cross_modal_ranks": cross_modal, "in_modal_ranks": in_modal}
        known = {"cross_modal_ranks": cross_modal_consistency, "in_modal_ranks": in_modal_consistency}
        self.terms = {name: known[name] for name, wanted in terms.items() if wanted}
        self.slope = slope
        self.most = most
        self.eps = eps
        self.shuffle_ties = shuffle_ties

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``cross_modal_ranks`` and ``in_modal_ranks`` of an encoded batch, each with its weight of now.

        Raises:
            ClipxError: processes hold batches of different size, or there are fewer than two pairs.
        """
        image, text = encoded.image(), encoded.text()
        check_equal_rows(image)
        all_image, all_text = gather_rows(image), gather_rows(text)
        check_candidates(image, all_text)
        size = len(all_text)
        first = common_permutation(size, image.device) if self.shuffle_ties else None
        weight = ramp(encoded.progress, self.slope, self.most) / (DIVISOR * size)
        return {
            name: weight
            * term(
                image,
                text,
                encoded.logit_scale,
                eps=self.eps,
                first=first,
                all_image=all_image,
                all_text=all_text,
            )
            for name, term in self.terms.items()
        }


def common_permutation(size: int, device: torch.device) -> Tensor:
    """A permutation int64 ``[size]`` that is drawn, the first process's in all of them; collective."""
    drawn = torch.randperm(size).to(device)  # on the CPU: the same on any device
    return gather_rows(drawn)[:size] if world()[1] > 1 else drawn
