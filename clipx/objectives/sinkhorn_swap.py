"""Each pair of views is told how another pair of views of the same batch is assigned: SwAV across images and
texts, whose prototypes are the batch itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.objectives.projected_views import PROJECTED_VIEWS, Projected
from clipx.training.distributed import check_equal_rows, gather_rows, sum_across
from clipx.training.encoded import Encoded

_LEAST = 0.005
"""Below it exp(-2 / epsilon) leaves the range of float64."""


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assign samples to prototypes softly, so that every prototype gets about as much. Collective.

    Args:
        scores: ``[B, M]`` cosines of this process's samples with the prototypes, which are the same in all.
        epsilon: temperature of the assignment, 0.005 or more.
        iterations: of the normalisation of columns, over the samples of all processes, then rows; 0 or more.

    Returns:
        ``[B, M]`` of the same dtype, rows sum to 1 after one iteration or more.

    Raises:
        ClipxError: ``epsilon`` too small.

    Source: Cuturi 2013; Caron et al. 2020 (SwAV), equation 3 and appendix A.
    """
    if epsilon < _LEAST:
        raise ClipxError(f"epsilon is {epsilon}, must be {_LEAST} or more", hint="0.05")
    shares = torch.exp((scores.double() - 1) / epsilon)
    for _ in range(iterations):
        shares = shares / sum_across(shares.sum(0))
        shares = shares / shares.sum(1, keepdim=True)
    return shares.to(scores.dtype)


def swapped_assignments(
    images: Sequence[Tensor],
    texts: Sequence[Tensor],
    logit_scale: Tensor | float,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """Mean cross-entropy of the logits of two views with the assignment of the two others. Collective.

    The mean over processes has the value and the gradient of one process with all rows.

    Args:
        images: two views ``[B, D]``, unit rows.
        texts: two views ``[B, D]``, unit rows.
        logit_scale: the inverse temperature of the logits, > 0.
        epsilon, iterations: as ``sinkhorn`` takes them.

    Returns:
        a scalar, 0 or more.

    Raises:
        ClipxError: not two views of each, processes hold batches of different size, or what ``sinkhorn``
            raises.

    Source: Fini et al. 2023, "Improved baselines for vision-language pre-training", SwALIP.
    """
    if len(images) != 2 or len(texts) != 2:
        raise ClipxError(
            f"assignments are swapped between 2 views, not {len(images)} of images and {len(texts)} of texts"
        )
    check_equal_rows(images[0])
    losses = []
    for own, others in ((images, texts), (texts, images)):
        everyones = [gather_rows(each) for each in others]
        for first in range(2):
            for second in range(2):
                logits = logit_scale * own[first] @ everyones[second].T
                assigned = sinkhorn(own[1 - first] @ everyones[1 - second].T, epsilon, iterations)
                losses.append(functional.cross_entropy(logits, assigned))
    return torch.stack(losses).mean()


class SinkhornSwap(nn.Module):
    """``swapped_assignments`` of the views that ``ProjectedViews`` gives, at its temperature.

    Args:
        epsilon, iterations: as ``sinkhorn`` takes them.

    Raises:
        ClipxError: ``epsilon`` too small, or ``iterations`` below 1.

    Source: Fini et al. 2023, SwALIP.
    """

    needs = (PROJECTED_VIEWS,)
    pooled = True

    def __init__(self, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__()
        sinkhorn(torch.zeros(1, 1), epsilon)  # what it does not take is met here
        if iterations < 1:
            raise ClipxError(f"iterations is {iterations}, must be 1 or more", hint="3")
        self.epsilon = epsilon
        self.iterations = iterations

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"swap": loss}`` of an encoded batch.

        Raises:
            ClipxError: the views' own contrast is smoothed, which would undo the assignments, or what
                ``swapped_assignments`` raises.
        """
        views: Projected = encoded.given(PROJECTED_VIEWS)
        if views.label_smoothing > 0:
            raise ClipxError(
                f"swapped assignments and label_smoothing={views.label_smoothing} of the same views clash",
                hint="objectives.projected.label_smoothing=0",
            )
        loss = swapped_assignments(
            views.images, views.texts, views.logit_scale, self.epsilon, self.iterations
        )
        return {"swap": loss}
