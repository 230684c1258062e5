"""Contrast between images and the prompts of their labels, where several pairs of a batch share a class."""

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError, did_you_mean
from clipx.objectives.infonce import info_nce
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

TARGETS = ("identity", "equal", "ignore")


def class_contrast(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float,
    *,
    targets: str = "identity",
    logit_bias: Tensor | float | None = None,
    all_image: Tensor | None = None,
    all_text: Tensor | None = None,
    all_labels: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """The symmetric contrastive loss over labelled pairs.

    Args:
        image, text: ``[B, D]`` unit rows, row i a pair.
        labels: classes int64 ``[B]``.
        logit_scale: > 0.
        targets: ``identity``: a pair of the same class is a negative like any other. ``equal``: every pair of
            the class is a positive, in equal shares (the cross-modal form of supervised contrast, its mean
            outside of the logarithm). ``ignore``: other pairs of the class are left out of the softmax.
        logit_bias: as ``info_nce`` takes it.
        all_image, all_text, all_labels: candidates ``[M, ...]`` of all processes, with this one's rows at
            ``offset``; None: this batch.
        offset: of this process's rows among the candidates.

    Returns:
        a scalar; with ``identity`` and many pairs of one class in a batch it cannot come near 0.

    Raises:
        ClipxError: unknown ``targets``, or what ``info_nce`` raises.

    Source: Goyal et al. 2023 (FLYP), equation 1, and the ablation of its class-collision term.
    """
    check_targets(targets)
    all_labels = labels if all_labels is None else all_labels
    same = labels[:, None] == all_labels[None, :]
    soft = left_out = None
    if targets == "equal":
        soft = same.to(image.dtype) / same.sum(1, keepdim=True)
    elif targets == "ignore":
        own = torch.arange(offset, offset + len(labels), device=labels.device)[:, None]
        left_out = same & (torch.arange(len(all_labels), device=labels.device)[None, :] != own)
    return info_nce(
        image,
        text,
        logit_scale,
        logit_bias=logit_bias,
        targets=soft,
        left_out=left_out,
        all_image=all_image,
        all_text=all_text,
        offset=offset,
    )


class ClassContrast(nn.Module):
    """FLYP's objective over the batches of all processes.

    Args:
        targets: identity, equal or ignore, see ``class_contrast``.

    Raises:
        ClipxError: unknown ``targets``.
    """

    needs = ("image", "text", "label")
    pooled = True

    def __init__(self, targets: str = "identity") -> None:
        super().__init__()
        check_targets(targets)
        self.targets = targets

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"class_contrast": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size.
        """
        image, text, labels = encoded.image(), encoded.text(), encoded["label"]
        check_equal_rows(image)
        loss = class_contrast(
            image,
            text,
            labels,
            encoded.logit_scale,
            targets=self.targets,
            logit_bias=encoded.logit_bias,
            all_image=gather_rows(image),
            all_text=gather_rows(text),
            all_labels=gather_rows(labels, with_grad=False),
            offset=world()[0] * len(image),
        )
        return {"class_contrast": loss}


def check_targets(targets: str) -> None:
    """Check the name of the targets.

    Raises:
        ClipxError: it is none.
    """
    if targets not in TARGETS:
        raise ClipxError(f"there are no targets {targets!r}", hint=did_you_mean(targets, TARGETS))
