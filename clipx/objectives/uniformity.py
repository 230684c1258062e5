"""Uniformity: embeddings spread over the sphere, those of a modality, and those of one against the other."""

import math

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

UNIFORMITY_T = 2.0
"""Wang and Isola 2020, section 4.2."""


def kernel_log_sums(cosines: Tensor, left_out: Tensor, t: float = UNIFORMITY_T) -> Tensor:
    """``log sum_j exp(-t |x_i - y_j|^2)`` of every row, ``[B]``.

    Args:
        cosines: ``[B, M]`` of unit vectors x_i and y_j.
        left_out: bool ``[B, M]``, what is not summed; a row of nothing else gives -infinity.
        t: of the kernel, > 0.
    """
    # From cosines: a distance has no derivative at 0.
    return torch.logsumexp((-t * (2 - 2 * cosines)).masked_fill(left_out, -torch.inf), 1)


def uniformity(rows: Tensor, t: float = UNIFORMITY_T) -> Tensor:
    """``log mean exp(-t |x_i - x_j|^2)`` over pairs of different rows of all processes; collective.

    Every process has the whole value; the mean of their gradients is that of one process with all rows.

    Args:
        rows: ``[B, D]`` unit rows of this process.
        t: of the kernel, > 0.

    Returns:
        a scalar in [-4t, 0]; lower is more even.

    Raises:
        ClipxError: fewer than two rows, which make no pair, or processes with different numbers of them.

    Source: Wang and Isola 2020, equation 6.
    """
    return _log_mean_of_others(rows, rows, t)


def cross_uniformity(image: Tensor, text: Tensor, t: float = UNIFORMITY_T) -> Tensor:
    """``log mean exp(-t |x_i - y_j|^2)`` over images and texts of different pairs; collective.

    Args:
        image: ``[B, D]`` unit rows of this process.
        text: ``[B, D]`` unit rows, row i the caption of image i.
        t: of the kernel, > 0.

    Returns:
        a scalar in [-4t, 0], over the pairs of all processes as ``uniformity``.

    Raises:
        ClipxError: as ``uniformity``.

    Source: Fahim, Murphy and Fyshe 2024, equation of L_xuniform.
    """
    return _log_mean_of_others(image, text, t)


def _log_mean_of_others(rows: Tensor, others: Tensor, t: float) -> Tensor:
    check_equal_rows(rows)
    candidates = gather_rows(others)
    count = len(candidates)
    if count < 2:
        raise ClipxError(
            f"uniformity needs two pairs or more, the batch has {count}", hint="raise training.batch_size"
        )
    place = world()[0] * len(rows) + torch.arange(len(rows), device=rows.device)
    own = place[:, None] == torch.arange(count, device=rows.device)
    logs = gather_rows(kernel_log_sums(rows @ candidates.T, own, t))
    return torch.logsumexp(logs, 0) - math.log(count * (count - 1))


class Uniformity(nn.Module):
    """Spreads the images over the sphere, and the texts: the mean of their uniformities.

    It sees the rows of all processes, for the value of few rows is not that of many.

    Args:
        t: of the kernel, > 0.

    Raises:
        ClipxError: ``t`` is not above 0.

    Source: Wang and Isola 2020; for two modalities Fahim, Murphy and Fyshe 2024.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(self, t: float = UNIFORMITY_T) -> None:
        super().__init__()
        self.t = _checked(t)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"uniformity": loss}`` of an encoded batch.

        Raises:
            ClipxError: what ``uniformity`` raises.
        """
        each = [uniformity(rows, self.t) for rows in (encoded.image(), encoded.text())]
        return {"uniformity": torch.stack(each).mean()}


class CrossUniformity(nn.Module):
    """Keeps every image away from the texts of other pairs, and every text from their images.

    Args:
        t: of the kernel, > 0.

    Raises:
        ClipxError: ``t`` is not above 0.

    Source: Fahim, Murphy and Fyshe 2024, "It's Not a Modality Gap".
    """

    needs = ("image", "text")
    pooled = True

    def __init__(self, t: float = UNIFORMITY_T) -> None:
        super().__init__()
        self.t = _checked(t)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"cross_uniformity": loss}`` of an encoded batch.

        Raises:
            ClipxError: what ``cross_uniformity`` raises.
        """
        return {"cross_uniformity": cross_uniformity(encoded.image(), encoded.text(), self.t)}


def _checked(t: float) -> float:
    if not 0 < t < math.inf:
        raise ClipxError(f"t={t} must be above 0", hint="t=2")
    return t
