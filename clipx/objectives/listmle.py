"""ListMLE: how likely scores make the order that other scores put the same items in."""

import math

import torch
from torch import Tensor


def list_mle(scores: Tensor, truth: Tensor, *, eps: float = 1e-10, first: Tensor | None = None) -> Tensor:
    """Mean over lists of the negative log-likelihood of the order of ``truth`` under ``scores``.

    An order is drawn item after item, each with the softmax of the scores of those that are left.

    Args:
        scores: ``[N, M]``, N lists of M items.
        truth: ``[N, M]``, higher is earlier in the order; no gradient flows into it.
        eps: added to the sums of the softmax after the largest score of a list has been taken away, 0 or
            more. It is a floor of log eps under what is left of a list: where scores spread further than
            -log eps nats, 23 for 1e-10, value and gradient differ from those of the likelihood, which is 0's.
        first: int64 ``[M]``, a permutation: of items that ``truth`` has alike, the one that it names earlier
            comes first; None for the one further left.

    Returns:
        a scalar.

    Source: Xia et al. 2008, "Listwise Approach to Learning to Rank", section 4; ``eps`` as in allRank's and
        RankCLIP's code.
    """
    if first is not None:
        scores, truth = scores[:, first], truth[:, first]
    order = truth.detach().sort(dim=-1, descending=True, stable=True).indices
    scores = scores.gather(-1, order)
    scores = scores - scores.amax(-1, keepdim=True)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)
    if eps > 0:
        left = torch.logaddexp(left, torch.full_like(left, math.log(eps)))
    return (left - scores).sum(-1).mean()
