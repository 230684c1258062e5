"""Alignment: pairs lie close together, and nothing is said about what does not belong together."""

import math
import warnings

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError, did_you_mean
from clipx.training.encoded import Encoded

FORMS = ("distance", "cosine")
SIDES = ("image", "text")

_LOOK_EVERY = 100
"""Steps between looks at whether all embeddings have become one; the first look waits as long, since towers
of random weights put all that they see into a narrow cone."""
_COLLAPSED = 0.9
"""Mean cosine of what does not belong together, above which they have."""


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances ``[B]`` of the rows ``[B, D]`` of two tensors, in [0, 4] for unit rows."""
    return (first - second).square().sum(-1)


def alignment(image: Tensor, text: Tensor, exponent: float = 2.0) -> Tensor:
    """Mean distance of pairs to the power of ``exponent``, a scalar, 0 or more.

    Args:
        image: ``[B, D]`` unit rows.
        text: ``[B, D]`` unit rows, row i the caption of image i.
        exponent: > 0.

    Source: Wang and Isola 2020, equation 5.
    """
    # A root has an infinite slope at 0, where the slope of the square is 0: together they would be NaN.
    squares = squared_distances(image, text)
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).pow(exponent / 2).mean()


def negative_pair_cosine(image: Tensor, text: Tensor) -> Tensor:
    """Minus the mean cosine of pairs, a scalar in [-1, 1]: half of ``alignment``, less 1.

    Args:
        image: ``[B, D]`` unit rows.
        text: ``[B, D]`` unit rows, row i the caption of image i.

    Source: Chen et al. 2024, "Understanding Transferable Representation Learning and Zero-shot Transfer in
        CLIP", section 6.
    """
    return -(image * text).sum(-1).mean()


class Alignment(nn.Module):
    """Pulls the two sides of every pair together; the logit scale has no part in it.

    Alone it is least where all embeddings are one point: it goes beside a contrastive objective, and with the
    cosine form a weight of more than about 5 collapses that too. Each process sees its own pairs, whose mean
    over processes is that of all.

    Args:
        form: ``distance``, see ``alignment``, or ``cosine``, see ``negative_pair_cosine``.
        exponent: of the distance, > 0; None: 2.
        detach: the side that gets no gradient, ``image`` or ``text``; None: both move.

    Raises:
        ClipxError: an unknown form or side, an exponent that is not above 0, or one of a cosine.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(
        self, form: str = "distance", exponent: float | None = None, detach: str | None = None
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ClipxError(f"there is no form {form!r} of alignment", hint=did_you_mean(form, FORMS))
        if detach is not None and detach not in SIDES:
            raise ClipxError(f"detach={detach!r} is no side of a pair", hint=did_you_mean(detach, SIDES))
        if exponent is not None and form == "cosine":
            raise ClipxError("form=cosine has no exponent", hint="form=distance, or exponent=null")
        if exponent is not None and not 0 < exponent < math.inf:
            raise ClipxError(f"exponent={exponent} must be above 0", hint="exponent=2")
        self.form = form
        self.exponent = 2.0 if exponent is None else exponent
        self.detach = detach
        self._steps = 0

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"alignment": loss}`` of an encoded batch; warns where all embeddings have become one."""
        image, text = encoded.image(), encoded.text()
        self._steps += 1
        if self._steps % _LOOK_EVERY == 0 and len(image) > 1:
            _warn_of_collapse(image.detach(), text.detach())
        if self.detach == "image":
            image = image.detach()
        elif self.detach == "text":
            text = text.detach()
        if self.form == "cosine":
            return {"alignment": negative_pair_cosine(image, text)}
        return {"alignment": alignment(image, text, self.exponent)}


def _warn_of_collapse(image: Tensor, text: Tensor) -> None:
    count = len(image)
    own = (image * text).sum()
    mean = float((image.sum(0) @ text.sum(0) - own) / (count * (count - 1)))
    if mean > _COLLAPSED:
        warnings.warn(
            f"images and texts that do not belong together have a mean cosine of {mean:.2f}: the embeddings "
            "become one point; a smaller weight of alignment lets the contrast hold them apart",
            stacklevel=3,
        )
