"""Towers without the layer norm at their end, so that the length of an embedding can mean something."""

from typing import Any

from torch import nn

from clipx.errors import ClipxError
from clipx.models.text import causal_tower


def remove_final_norms(model: nn.Module) -> None:
    """Put an identity in the place of the last layer norm of both towers, in place.

    A ModifiedResNet has none. An embedding that no norm bounds can be as long as its image or text asks for,
    which a comparison by distance needs.

    Raises:
        ClipxError: a tower whose last norm is not known.

    Source: Chou and Alam 2024, section 3.3.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    visual: Any = model.visual
    if isinstance(visual, VisionTransformer):
        visual.ln_post = nn.Identity()
    elif not isinstance(visual, ModifiedResNet):
        raise ClipxError(
            f"it is not known which norm a {type(visual).__name__} ends in",
            hint="model.final_norm=false is for a ViT or ResNet of open_clip",
        )
    text = causal_tower(model)
    if text is None:
        raise ClipxError(
            "it is not known which norm the text tower ends in",
            hint="model.final_norm=false is for a causal text transformer of open_clip",
        )
    text.ln_final = nn.Identity()
