"""Cross-entropy over the prompts of all classes, embedded anew in every step by a text tower that learns."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.training.distributed import gather_rows
from clipx.training.encoded import Encoded

TEMPLATES = ("random", "average")


def prompt_cross_entropy(
    image: Tensor,
    text: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
) -> Tensor:
    """Mean of ``-log softmax(logit_scale * image @ text.T)[label]``.

    Args:
        image: ``[B, D]`` unit rows.
        text: ``[C, D]`` unit rows, one a class.
        labels: classes int64 ``[B]``.
        logit_scale: > 0.
        logit_bias: added to every logit, which changes nothing. Processes that share a model wait for the
            gradient of each parameter, also for one of zeros.

    Source: Goyal et al. 2023 (FLYP), the ablation of its loss ("FLYP-CE").
    """
    logits = logit_scale * image @ text.T
    return functional.cross_entropy(logits if logit_bias is None else logits + logit_bias, labels)


class PromptCrossEntropy(nn.Module):
    """FLYP's objective with a softmax over all classes in place of the pairs of a batch.

    Args:
        prompts: token ids int64 ``[C, T, L]`` of every class in every template.
        templates: ``random``: one prompt a class, drawn anew every step and for each class by itself, the
            same in all processes. ``average``: the mean of all prompts of a class, as they classify
            afterwards, for T times the text.

    Raises:
        ClipxError: unknown ``templates``.

    Source: Goyal et al. 2023. The paper does not say which prompt a step takes; ``random`` is what its code
    does.
    """

    needs = ("image", "label")
    # The prompts are no rows of a batch: a gradient cache takes their gradient whole.
    pooled = True

    prompts: Tensor

    def __init__(self, prompts: Tensor, templates: str = "random") -> None:
        super().__init__()
        if templates not in TEMPLATES:
            raise ClipxError(f"there is no templates={templates!r}", hint=did_you_mean(templates, TEMPLATES))
        self.templates = templates
        self.register_buffer("prompts", prompts.clone(), persistent=False)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"prompt_cross_entropy": loss}`` of an encoded batch."""
        loss = prompt_cross_entropy(
            encoded.image(),
            self._classes(encoded),
            encoded["label"],
            encoded.logit_scale,
            logit_bias=encoded.logit_bias,
        )
        return {"prompt_cross_entropy": loss}

    def _classes(self, encoded: Encoded) -> Tensor:
        classes, templates, _ = self.prompts.shape
        if self.templates == "random":
            device = self.prompts.device
            drawn = gather_rows(torch.randint(templates, (classes,)).to(device), with_grad=False)[:classes]
            return encoded.embed_texts(self.prompts[torch.arange(classes, device=device), drawn])
        rows = encoded.embed_texts(self.prompts.flatten(0, 1)).unflatten(0, (classes, templates))
        return functional.normalize(rows.mean(1), dim=-1)
