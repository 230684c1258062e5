"""Lock parts of a CLIP: what is locked does not train and behaves as it does in use."""

from torch import nn

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.layers import part_of


def lock(
    clip: CLIP,
    *,
    image: bool = False,
    text: bool = False,
    scale: bool = False,
    first_convolution: bool = False,
    batch_norm: bool = False,
) -> CLIP:
    """Take the gradient from parts of a model, in place.

    A batch norm without gradient keeps its statistics while the rest trains, see ``CLIP.train``.

    Args:
        clip: the model.
        image: the whole image tower; with a text tower that trains, locked-image tuning (LiT).
        text: the whole text tower.
        scale: the scale of the logits, and their bias where there is one.
        first_convolution: of the image tower, which cuts the patches of a ViT.
        batch_norm: every batch norm, with its statistics: on little data these drift even where the weights
            hardly move.

    Raises:
        ClipxError: ``first_convolution`` of an image tower that has no convolution, or no truth value.

    Source: Zhai et al. 2022 (LiT) for the image tower; Dong et al. 2022 (FT-CLIP) and Chen et al. 2021 (MoCo
    v3) for the convolution.
    """
    given = {"image": image, "text": text, "scale": scale, "first_convolution": first_convolution}
    for part, wanted in {**given, "batch_norm": batch_norm}.items():
        if not isinstance(wanted, bool):
            raise ClipxError(
                f"lock.{part}={wanted} must be true or false",
                hint="logit_scale=100 lock.scale=true keeps the scale at a number",
            )
    locked = {part for part, wanted in (("image", image), ("text", text), ("scale", scale)) if wanted}
    # What both towers share is locked with either.
    for name, parameter in clip.model.named_parameters(remove_duplicate=False):
        if part_of(name) in locked:
            parameter.requires_grad_(False)
    if first_convolution:
        for parameter in _first_convolution(clip).parameters():
            parameter.requires_grad_(False)
    if batch_norm:
        for module in clip.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
    return clip


def _first_convolution(clip: CLIP) -> nn.Module:
    for module in clip.model.get_submodule("visual").modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return module
    raise ClipxError("the image tower has no convolution to lock", hint="lock.first_convolution=false")
