"""The head of a model that was fine-tuned with it, as an adapter, so that it is kept and used like one."""

from typing import Self

from torch import Tensor, nn

from clipx.adapters.checks import check_choice, check_fitted, check_queries

POOLS = ("embedding", "patches")
"""What a head sees of an image: its unit embedding, or the mean of its patches."""


class TrainedHead:
    """A linear classifier on what the model that it was trained with makes of an image.

    Args:
        pool: one of ``POOLS``.

    Raises:
        ClipxError: an unknown pool.
    """

    weight_: Tensor
    bias_: Tensor

    def __init__(self, pool: str = "embedding") -> None:
        check_choice("pool", pool, POOLS)
        self.pool = pool
        self.needs = "patches" if pool == "patches" else "features"

    @classmethod
    def of(cls, head: nn.Module, pool: str = "embedding") -> Self:
        """An adapter that answers as ``head`` does, by its ``weight`` ``[C, D]`` and ``bias`` ``[C]``."""
        adapter = cls(pool)
        adapter.weight_, adapter.bias_ = head.weight.detach(), head.bias.detach()  # type: ignore[operator]
        return adapter

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of rows ``[M, D]``: unit embeddings, or means of patches."""
        check_fitted(self)
        rows = check_queries(features, self.weight_, unit=self.pool == "embedding")
        return rows @ self.weight_.T + self.bias_
