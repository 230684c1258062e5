"""SharedCLIP: images and texts go through the same transformer blocks, final norm and projection."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError, did_you_mean
from clipx.models.text import causal_tower

PARTS = ("blocks", "norm", "projection")
"""What towers can share."""

_NAMES = {
    "blocks": ("transformer", "transformer"),
    "norm": ("ln_post", "ln_final"),
    "projection": ("proj", "text_projection"),
}
"""Attributes of the image tower and of the text tower."""


def share_trunk(model: nn.Module, parts: Sequence[str] = PARTS) -> None:
    """Make parts of the text tower those of the image tower too, in place.

    Patches, class token and positions of images and the embeddings and positions of tokens stay apart; texts
    keep their causal mask. The weights are those of the text tower, whose initialisation is CLIP's. The state
    of the model keeps the names of both towers: what is saved is an ordinary model with equal weights.

    Args:
        model: an open_clip model of two transformers, a ViT and a causal one.
        parts: of ``PARTS``.

    Raises:
        ClipxError: an unknown part, none, or towers that differ in it.

    Source: Eslami and de Melo 2025 (AlignCLIP), section 4.1.
    """
    image, text = _towers(model)
    for part, (of_image, of_text) in _checked(parts).items():
        one, other = getattr(image, of_image), getattr(text, of_text)
        if not _alike(one, other):
            raise ClipxError(
                f"the towers cannot share their {part}: that of images has {_told(one)}, "
                f"that of texts {_told(other)}",
                hint="a model whose towers are as wide, as deep and of as many heads: model=tiny-vit",
            )
        setattr(image, of_image, other)


def check_equal_weights(model: nn.Module, parts: Sequence[str] = PARTS) -> None:
    """Check that sharing parts would lose no weights of the image tower.

    Raises:
        ClipxError: an unknown part, none, or weights that differ.
    """
    image, text = _towers(model)
    for part, (of_image, of_text) in _checked(parts).items():
        one, other = _tensors(getattr(image, of_image)), _tensors(getattr(text, of_text))
        if any(a.shape == b.shape and not torch.equal(a, b) for a, b in zip(one, other, strict=False)):
            raise ClipxError(
                f"the towers were trained apart: sharing their {part} would lose those of images",
                hint="model.share is for random weights, and for those of a model that shared them",
            )


def _checked(parts: Sequence[str]) -> dict[str, tuple[str, str]]:
    for part in parts:
        if part not in PARTS:
            raise ClipxError(f"towers have no {part!r} to share", hint=did_you_mean(part, PARTS))
    if not parts:
        raise ClipxError("model.share=[] shares nothing", hint=f"model.share=[{','.join(PARTS)}], or null")
    return {part: _NAMES[part] for part in PARTS if part in parts}


def _towers(model: nn.Module) -> tuple[Any, Any]:
    from open_clip.transformer import VisionTransformer

    image, text = model.get_submodule("visual"), causal_tower(model)
    if type(image) is not VisionTransformer or text is None:
        what = type(image).__name__ if text is not None else "a text tower that is not causal"
        raise ClipxError(
            f"towers share a trunk where both are transformers of open_clip; this model has {what}",
            hint="model=tiny-vit, or ViT-B-16 with widths alike",
        )
    return image, text


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape
    # The representation of a module holds the widths, the norms and the activations of all in it.
    return repr(one) == repr(other) and _heads(one) == _heads(other) and isinstance(one, nn.Module)


def _heads(part: Any) -> list[int]:
    blocks = getattr(part, "resblocks", ())
    return [int(block.attn.num_heads) for block in blocks]


def _tensors(part: Any) -> list[Tensor]:
    return list(part.state_dict().values()) if isinstance(part, nn.Module) else [part]


def _told(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"one from {part.shape[0]} to {part.shape[1]} dimensions"
    if hasattr(part, "resblocks"):
        heads = _heads(part)
        return f"{len(heads)} of width {part.width} with {heads[0]} heads"
    return str(part)
