"""What an image tower knows before it pools: one vector a patch, and their mean."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP


def embed_with_patches(clip: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embed normalised images ``[B, 3, H, W]`` as ``[B, D]``, not normalised, and as patches ``[B, N, W]``.

    Patches are what the last block of a ViT gives for them, without the class token and before any final
    norm; of a ModifiedResNet, which has none, the N positions of the last stage's map, before the attention
    pool; of a timm tower either of these, as it is built.

    Raises:
        ClipxError: another tower.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if not clip.comparison.one_vector:
        raise ClipxError(
            f"{clip.name} compares by {clip.comparison.kind}: no image is one vector, beside its patches",
            hint="objectives.cross_entropy.pool=embedding",
        )
    visual: Any = clip.model.visual
    if isinstance(visual, VisionTransformer):
        tokens = visual.transformer(visual._embeds(images))
        pooled, _ = visual._pool(tokens)
        return pooled if visual.proj is None else pooled @ visual.proj, tokens[:, 1:]
    if isinstance(visual, ModifiedResNet):
        grid = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            grid = stage(grid)
        return visual.attnpool(grid), _rows(grid)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "forward_intermediates"):
        trunk: Any = visual.trunk
        final, (grid,) = trunk.forward_intermediates(images, indices=1, norm=False, output_fmt="NCHW")
        return visual.head(trunk.forward_head(final)), _rows(grid)
    raise ClipxError(
        f"the image tower of {clip.name}, a {type(visual).__name__}, does not show its patches",
        hint="objectives.cross_entropy.pool=embedding",
    )


def _rows(grid: Tensor) -> Tensor:
    return grid.flatten(2).transpose(1, 2)


def patch_mean(patches: Tensor) -> Tensor:
    """The mean of patches ``[B, N, W]``, each brought to mean 0 and variance 1: float32 or better ``[B, W]``.

    Gain and bias of a layer norm on the patches are the same for every patch, so a layer norm, the mean and a
    linear map are this mean, the gain and bias, and the map: nothing before the gain is learnt.
    """
    wide = patches.to(torch.promote_types(patches.dtype, torch.float32))
    return functional.layer_norm(wide, wide.shape[-1:]).mean(1)


@torch.no_grad()
def features_and_patch_mean(
    clip: CLIP, images: Tensor, precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Rows ``[B, D]``, see ``CLIP``, and patch means ``[B, W]``, float32, of uint8 images ``[B, 3, H, W]``.

    Raises:
        ClipxError: as ``embed_with_patches``.
    """
    device = clip.device
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        pooled, patches = embed_with_patches(clip, clip.normalize(images.to(device, non_blocking=True)))
    return clip.comparison.image_rows(pooled).float(), patch_mean(patches).float()


def patch_mean_of_images(clip: CLIP, images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """The patch means alone, as ``features_and_patch_mean`` gives them."""
    return features_and_patch_mean(clip, images, precision)[1]


def patch_width(clip: CLIP) -> int:
    """W, the width of the patches.

    Raises:
        ClipxError: as ``embed_with_patches``.
    """
    return patch_mean(_probed(clip)).shape[-1]


def lock_pooling(clip: CLIP) -> CLIP:
    """Take the gradient, in place, from what an image tower has after its patches: final norm, pool,
    projection.

    Processes that train together wait for the gradient of every parameter that has one.

    Raises:
        ClipxError: as ``embed_with_patches``.
    """
    own = [each for each in clip.model.get_submodule("visual").parameters() if each.requires_grad]
    with torch.enable_grad():
        total = _probed(clip).sum()
    found: Any = [None] * len(own)
    if own and total.requires_grad:
        found = torch.autograd.grad(total, own, allow_unused=True)
    for parameter, gradient in zip(own, found, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
    return clip


def _probed(clip: CLIP) -> Tensor:
    """Patches of one black image, in the mode of use, in which it leaves no trace."""
    training = clip.training
    clip.eval()
    try:
        weight = next(clip.model.get_submodule("visual").parameters())
        size = clip.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return embed_with_patches(clip, weight.new_zeros(1, 3, height, width))[1]
    finally:
        clip.train(training)
