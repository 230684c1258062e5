"""The head of a model that was fine-tuned with it, as an adapter, so that it is kept and used like one."""

from typing import Self

from torch import Tensor, nn

from clipx.adapters.checks import check_fitted, check_queries


class TrainedHead:
    """A linear classifier on the unit image embeddings of the model that it was trained with."""

    needs = "features"

    weight_: Tensor
    bias_: Tensor

    @classmethod
    def of(cls, head: nn.Linear) -> Self:
        """An adapter that answers as ``head`` does."""
        adapter = cls()
        adapter.weight_, adapter.bias_ = head.weight.detach(), head.bias.detach()
        return adapter

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        return check_queries(features, self.weight_) @ self.weight_.T + self.bias_
