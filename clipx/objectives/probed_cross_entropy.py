"""Cross-entropy of a head that starts as a linear probe of the features it is trained on."""

import torch
from torch import Tensor

from clipx.objectives.cross_entropy import CrossEntropy


class ProbedCrossEntropy(CrossEntropy):
    """``CrossEntropy`` on unit image embeddings, from a head that fits them already.

    The first steps of fine-tuning then have little to move the features for, and what they knew of other data
    stays.

    Args:
        probe: weights ``[C, D]`` and biases ``[C]`` of a classifier that was fitted to frozen features.
        label_smoothing: in [0, 1).

    Raises:
        ClipxError: a smoothing outside its range.

    Source: Kumar et al. 2022 (LP-FT), section 3.4.
    """

    def __init__(self, probe: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> None:
        weight, bias = probe
        super().__init__(weight, label_smoothing)
        with torch.no_grad():
            self.head.bias.copy_(bias)  # type: ignore[operator]
