"""SimCLR: of two views of each image, one picks the other among all views of the batch."""

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.training.distributed import check_equal_rows, gather_rows, world


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float = 0.1,
    *,
    all_first: Tensor | None = None,
    all_second: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """The normalised, temperature-scaled cross-entropy: each view against all others of the batch but itself.

    Args:
        first, second: ``[B, D]``, row i of both a view of image i; normalised here.
        temperature: above 0.
        all_first, all_second: the views ``[M, D]`` of all images, with ``first`` and ``second`` at rows
            ``offset`` to ``offset + B``; None for these alone.
        offset: of this process's rows among all.

    Returns:
        a scalar, 0 or more: the mean over the 2B views.

    Raises:
        ClipxError: fewer than two images: there is nothing to tell apart.

    Source: Chen et al. 2020 (SimCLR), equation 1.
    """
    first, second = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
    all_first = first if all_first is None else functional.normalize(all_first, dim=-1)
    all_second = second if all_second is None else functional.normalize(all_second, dim=-1)
    if len(all_first) < 2:
        raise ClipxError("a contrastive batch needs at least 2 images", hint="raise training.batch_size")
    wanted = torch.arange(offset, offset + len(first), device=first.device)
    itself = functional.one_hot(wanted, len(all_first)).bool()
    losses = []
    for own, same, other in ((first, all_first, all_second), (second, all_second, all_first)):
        others = own @ other.T / temperature
        alike = (own @ same.T / temperature).masked_fill(itself, -torch.inf)
        losses.append(functional.cross_entropy(torch.cat([others, alike], dim=1), wanted))
    return (losses[0] + losses[1]) / 2


def nt_xent_across(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """``nt_xent`` of this process's views against those of all processes; collective.

    The mean over processes has the value and the gradient of one process with all views.

    Raises:
        ClipxError: processes hold batches of different size, or what ``nt_xent`` raises.
    """
    check_equal_rows(first)
    return nt_xent(
        first,
        second,
        temperature,
        all_first=gather_rows(first),
        all_second=gather_rows(second),
        offset=world()[0] * len(first),
    )
