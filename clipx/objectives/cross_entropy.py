"""Cross-entropy of a classifier head on image embeddings: supervised fine-tuning."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.training.encoded import Encoded

INITS = ("zero-shot", "small")


class CrossEntropy(nn.Module):
    """A linear head over classes on unit image embeddings, and its loss; the text tower is not used.

    Args:
        classifier: the zero-shot classifier ``[C, D]``: unit rows times the model's logit scale.
        label_smoothing: in [0, 1).
        init: ``zero-shot`` starts the head at ``classifier``, so that the model begins as good as its
            prompts; ``small`` at a normal of deviation 2e-5, cut at two deviations.

    Raises:
        ClipxError: an unknown ``init``, or a smoothing outside its range.

    Source: Wortsman et al. 2022 (WiSE-FT), section 3, for the start; Dong et al. 2022 (FT-CLIP) for the
    smoothing and the small start, 0.001 times BEiT's.
    """

    needs = ("image", "label")
    pooled = True

    def __init__(self, classifier: Tensor, label_smoothing: float = 0.0, init: str = "zero-shot") -> None:
        super().__init__()
        if init not in INITS:
            raise ClipxError(f"there is no init {init!r} of a head", hint=f"one of: {', '.join(INITS)}")
        if not 0 <= label_smoothing < 1:
            raise ClipxError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        self.label_smoothing = label_smoothing
        self.head = nn.Linear(classifier.shape[1], classifier.shape[0], dtype=classifier.dtype)
        with torch.no_grad():
            self.head.bias.zero_()
            if init == "zero-shot":
                self.head.weight.copy_(classifier)
            else:
                nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.04, b=0.04).mul_(0.001)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"cross_entropy": loss}``; smoothing spreads that share over all classes."""
        logits = self.head(encoded.image())
        loss = functional.cross_entropy(logits, encoded["label"], label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}
