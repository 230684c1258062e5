"""A text tower without its last layers."""

from typing import Any

from torch import nn

from clipx.errors import ClipxError


def keep_text_layers(model: nn.Module, layers: int) -> None:
    """Keep the first layers of a text transformer, in place.

    Args:
        model: an open_clip model whose text tower is open_clip's own transformer.
        layers: that stay, 1 or more.

    Raises:
        ClipxError: another tower, or one that has no so many layers.

    Source: LightCLIP (2023), whose text tower has a part of CLIP's twelve layers.
    """
    tower: Any = getattr(model, "text", model)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None:
        raise ClipxError(
            f"the text tower, a {type(tower).__name__}, is not open_clip's own and keeps its layers",
            hint="model.text_layers=null",
        )
    if not 1 <= layers <= len(blocks):
        raise ClipxError(
            f"the text tower has {len(blocks)} layers, {layers} cannot stay",
            hint=f"model.text_layers in 1..{len(blocks)}",
        )
    tower.transformer.resblocks = blocks[:layers]
    tower.transformer.layers = layers
