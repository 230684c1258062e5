"""InfoNCE whose targets soften as training goes on: pairs from the web are not strictly one to one."""

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError, did_you_mean
from clipx.objectives.infonce import info_nce
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

WEIGHTS = ("similarity", "uniform")
"""How the share of a target that is not its own is spread over the others: by their logits, or evenly."""


def soft_targets(
    logits: Tensor, share: Tensor | float, weights: str = "similarity", offset: int = 0
) -> Tensor:
    """Targets that leave a share to the other candidates; no gradient flows through them.

    Args:
        logits: ``[B, M]`` of B rows and M candidates, of which row i matches ``offset + i``.
        share: that the others get together, in [0, 0.5].
        weights: ``similarity``, each by the softmax of its logit among the others; ``uniform``, all alike.
        offset: of the rows among the candidates.

    Returns:
        ``[B, M]``, rows sum to 1.

    Source: LightCLIP (2023), instance-level alignment with progressively softened labels.
    """
    own = torch.zeros_like(logits, dtype=torch.bool)
    own.diagonal(offset).fill_(True)
    if weights == "similarity":
        others = logits.detach().masked_fill(own, -torch.inf).softmax(-1)
    else:
        others = (~own).to(logits.dtype) / (logits.shape[1] - 1)
    return share * others + (1 - share) * own.to(logits.dtype)


class SoftInfoNCE(nn.Module):
    """InfoNCE over the batches of all processes, with targets that soften from hard to ``share``.

    The share of the other candidates grows linearly with training, from nothing. Each direction has targets
    of its own.

    Args:
        share: what the others get together in the end, in [0, 0.5]; with more they would weigh as much as the
            pair.
        weights: see ``soft_targets``.

    Raises:
        ClipxError: a share out of range, or unknown weights.

    Source: LightCLIP (2023); the ramp's shape and its end of 0.2 are not in the sources that could be had.
    """

    needs = ("image", "text")
    pooled = True

    def __init__(self, share: float = 0.2, weights: str = "similarity") -> None:
        super().__init__()
        if not 0 <= share <= 0.5:
            raise ClipxError(
                f"share is {share}, must lie in [0, 0.5]",
                hint="above one half the other candidates weigh as much as the match",
            )
        if weights not in WEIGHTS:
            raise ClipxError(f"there are no weights {weights!r}", hint=did_you_mean(weights, WEIGHTS))
        self.share = share
        self.weights = weights

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"soft_infonce": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size, or what ``info_nce`` raises.
        """
        image, text, scale = encoded.image(), encoded.text(), encoded.logit_scale
        check_equal_rows(image)
        all_image, all_text = gather_rows(image), gather_rows(text)
        offset, share = world()[0] * len(image), self.share * encoded.progress
        with torch.no_grad():
            targets = tuple(
                soft_targets(scale * rows @ candidates.T, share, self.weights, offset)
                for rows, candidates in ((image, all_text), (text, all_image))
            )
        loss = info_nce(
            image,
            text,
            scale,
            logit_bias=encoded.logit_bias,
            targets=targets,  # type: ignore[arg-type]
            all_image=all_image,
            all_text=all_text,
            offset=offset,
        )
        return {"soft_infonce": loss}
