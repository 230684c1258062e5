"""Cross-entropy of a classifier head on what the image tower gives: supervised fine-tuning."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.clip import CLIP
from clipx.models.patches import patch_width
from clipx.training.encoded import Encoded

INITS = ("zero-shot", "small")
POOLS = ("embedding", "patches")


class PatchHead(nn.Module):
    """A layer norm on patches, their mean, and a linear map to the classes.

    It is given the mean of normalised patches, see ``patch_mean``, so that gain and bias of the norm and the
    linear map are what is left: a classifier with ``weight`` ``[C, W]`` and ``bias`` ``[C]``.

    Args:
        width: W, of the patches.
        classes: C.

    Source: Dong et al. 2022 (FT-CLIP), its code.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, classes)

    @property
    def weight(self) -> Tensor:
        """What the mean of normalised patches is multiplied with, ``[C, W]``."""
        return self.linear.weight * self.gain

    @property
    def bias(self) -> Tensor:
        """What is added then, ``[C]``."""
        return self.linear.weight @ self.shift + self.linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        """Logits ``[B, C]`` of means of normalised patches ``[B, W]``."""
        return self.linear(rows * self.gain + self.shift)


class CrossEntropy(nn.Module):
    """A head over classes on the image tower, and its loss; the text tower is not used.

    Args:
        classifier: the zero-shot classifier ``[C, D]``: unit rows times the model's logit scale.
        label_smoothing: in [0, 1).
        init: ``zero-shot`` starts the head at ``classifier``, so that the model begins as good as its
            prompts; ``small`` at a normal of deviation 2e-5, cut at two deviations, and a thousandth of the
            bias that a layer of torch begins with. None: zero-shot where there is such a start.
        pool: ``embedding`` is a linear head on the unit embedding; ``patches`` a ``PatchHead`` on what the
            tower gives before its final norm and projection, which are not used. Of a ResNet these are the
            positions of its last map, before the attention pool. No prompt tells where such a head starts.
        clip: the model, whose patches are as wide as the head has to be; not kept.

    Raises:
        ClipxError: an unknown ``init`` or ``pool``, a zero-shot start on patches, a tower that does not show
            its patches, or a smoothing outside its range.

    Source: Wortsman et al. 2022 (WiSE-FT), section 3, for the start; Dong et al. 2022 (FT-CLIP) for the
    smoothing, the head on patches and the small start, 0.001 times BEiT's.
    """

    needs = ("image", "label")

    def __init__(
        self,
        classifier: Tensor,
        label_smoothing: float = 0.0,
        init: str | None = None,
        pool: str = "embedding",
        clip: CLIP | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ClipxError(f"there is no pool {pool!r} under a head", hint=did_you_mean(pool, POOLS))
        patches = pool == "patches"
        start = init or ("small" if patches else "zero-shot")
        if start not in INITS:
            raise ClipxError(f"there is no init {start!r} of a head", hint=did_you_mean(start, INITS))
        if patches and start == "zero-shot":
            raise ClipxError(
                "a head on patches cannot start as the zero-shot classifier, which is for embeddings",
                hint="init=small, or pool=embedding",
            )
        if not 0 <= label_smoothing < 1:
            raise ClipxError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        self.label_smoothing = label_smoothing
        self.pool = pool
        # Who sees more than the embeddings of a batch cannot train with a gradient cache.
        self.pooled = not patches
        self.patched = ("image",) if patches else ()
        self.head: nn.Module
        if patches:
            if clip is None:
                raise ValueError("pool='patches' needs clip")
            self.head = PatchHead(patch_width(clip), len(classifier))
            linear = self.head.linear
        else:
            self.head = linear = nn.Linear(*classifier.T.shape)
        self.head.to(classifier.dtype)
        with torch.no_grad():
            if start == "zero-shot":
                linear.weight.copy_(classifier)
                linear.bias.zero_()
            else:
                nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.04, b=0.04).mul_(0.001)
                linear.bias.mul_(0.001)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"cross_entropy": loss}``; smoothing spreads that share over all classes."""
        logits = self.head(encoded.patches() if self.patched else encoded.image())
        loss = functional.cross_entropy(logits, encoded["label"], label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}
