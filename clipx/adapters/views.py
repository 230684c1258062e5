"""Several augmented views of one image: averaged into one row, or taken in turn."""

import torch
from torch import Tensor
from torch.nn import functional


def average_views(features: Tensor, groups: Tensor, norms: Tensor | None = None) -> Tensor:
    """One unit row an image ``[G, D]``: its views averaged as the tower gave them, then normalised.

    Normalising first and averaging after gives other rows, for a long view counts more: hence ``norms``.

    Args:
        features: views ``[N, D]``, unit rows.
        groups: int64 ``[N]``, the image of every view, in [0, G).
        norms: ``[N]``, the length each view had before it was normalised; None counts all alike.

    Source: the cache of Tip-Adapter (Zhang et al. 2022).
    """
    weighted = features if norms is None else features * norms.to(features)[:, None]
    sums = features.new_zeros(int(groups.max()) + 1, features.shape[1]).index_add(0, groups, weighted)
    return functional.normalize(sums, dim=-1)


def first_of_groups(values: Tensor, groups: Tensor) -> Tensor:
    """What all views of an image share, such as its label, once an image: ``[G]`` of ``[N]``."""
    shared = values.new_empty(int(groups.max()) + 1)
    shared[groups] = values
    return shared


VIEWS = ("keep", "average")


def keys_of(features: Tensor, labels: Tensor, groups: Tensor, views: str) -> tuple[Tensor, Tensor]:
    """The rows that a kernel method keeps, and their labels.

    Args:
        features: ``[N, D]`` unit rows.
        labels: ``[N]``.
        groups: int64 ``[N]``, the image of every row, in [0, G).
        views: ``keep`` each view as a row of its own, or ``average`` those of an image.
    """
    if views == "keep":
        return features, labels
    return average_views(features, groups), first_of_groups(labels, groups)


class Turns:
    """The views of every image, one at a time, as if each epoch augmented anew.

    Args:
        groups: int64 ``[N]``, the image of every row, in [0, G).
    """

    def __init__(self, groups: Tensor) -> None:
        self.rows = groups.argsort(stable=True)
        self.counts = groups.bincount()
        self.starts = self.counts.cumsum(0) - self.counts

    def __call__(self, turn: int) -> Tensor:
        """Rows int64 ``[G]``, one an image, of the given turn; an image's views come round again."""
        return self.rows[self.starts + torch.remainder(turn, self.counts)]
