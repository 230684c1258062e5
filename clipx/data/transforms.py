"""From a PIL image to the uint8 tensor a loader batches; normalisation happens on the device.

Bytes travel to the device at a quarter of the size of floats, and one fused normalisation of a batch costs
less than one of every image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipx.data.augmentation import MEAN, STD, Erasing, rand_augment_of, seeded_from
from clipx.errors import BadSample, ClipxError, did_you_mean

STRETCHED = (3 / 4, 4 / 3)
"""Width over height of the crops of torchvision and open_clip, which few-shot papers train on."""
_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def to_pil(image: Any) -> Image.Image:
    """An RGB PIL image of what a source yields: PIL of any mode, or uint8 ``[H, W]`` or ``[H, W, 1, 3 or
    4]``.

    Raises:
        BadSample: an array of another shape or dtype.
    """
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8 or not (
            pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {3, 4})
        ):
            raise BadSample(
                f"not an image: an array {pixels.dtype} {list(pixels.shape)}, not uint8 [H, W, 3]"
            )
        image = Image.fromarray(pixels)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 ``[3, H, W]`` of an RGB PIL image."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def inference_transform(preprocess_cfg: dict[str, Any]) -> Callable[[Any], Tensor]:
    """open_clip's evaluation transform up to ``ToTensor``: resize, crop, RGB; uint8 ``[3, H, W]``.

    Args:
        preprocess_cfg: size (pixels or (height, width)), interpolation, resize_mode, fill_color.
    """
    from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, ToTensor

    known = {key: value for key, value in preprocess_cfg.items() if key in PreprocessCfg.__dataclass_fields__}
    steps = image_transform_v2(PreprocessCfg(**known), is_train=False).transforms
    end = next(i for i, step in enumerate(steps) if isinstance(step, MaybeToTensor | ToTensor))
    size = known["size"] if isinstance(known["size"], (list, tuple)) else (known["size"],) * 2
    return _Inference((size[1], size[0]), Compose(steps[:end]))


class _Inference:
    # A class, not a closure: loader processes that are spawned receive it by pickle.
    def __init__(self, size: tuple[int, int], geometry: Callable[[Image.Image], Image.Image]) -> None:
        self.size = size
        self.geometry = geometry

    def __call__(self, image: Any) -> Tensor:
        picture = to_pil(image)
        return to_tensor(picture if picture.size == self.size else self.geometry(picture))


class TrainTransform:
    """Random crop, and what else is asked for; by default the square crop that CLIP was trained with.

    Radford et al. 2021, section 2.4: a random square crop of the resized image is the only augmentation.
    The order is timm's: crop, mirror, RandAugment, erasing.
    Draws come from the generator handed in, so an image is a pure function of (seed, epoch, index).

    Args:
        size: output side, pixels.
        scale: smallest and largest share of the area that is kept, in (0, 1].
        ratio: smallest and largest width over height of the crop; open_clip has ``STRETCHED``.
        flip: probability of a left-right mirror, in [0, 1]; 0 where captions speak of left and right.
        interpolation: ``bicubic`` or ``bilinear``.
        rand_augment: timm's description of a RandAugment, such as ``rand-m9-mstd0.5-inc1``; None for none.
        erase: probability that a rectangle is replaced by noise, in [0, 1].
        mean, std: of the model's normalisation, three each: what RandAugment fills with, and the noise.

    Raises:
        ClipxError: an argument outside its range.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.9, 1.0),
        ratio: tuple[float, float] = (1.0, 1.0),
        flip: float = 0.0,
        interpolation: str = "bicubic",
        rand_augment: str | None = None,
        erase: float = 0.0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        for name, (low, high), top in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
            if not 0 < low <= high <= top:
                raise ClipxError(f"{name} is [{low}, {high}]", hint=f"smallest, largest, in (0, {top}]")
        for name, share in (("flip", flip), ("erase", erase)):
            if not 0 <= share <= 1:
                raise ClipxError(f"{name} is {share}, must lie in [0, 1]")
        if interpolation not in _RESAMPLE:
            raise ClipxError(
                f"unknown interpolation {interpolation!r}", hint=did_you_mean(interpolation, _RESAMPLE)
            )
        self.size = size
        self.scale = scale
        self.log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
        self.flip = flip
        self.resample = _RESAMPLE[interpolation]
        self.changed = rand_augment and rand_augment_of(rand_augment, size, mean, self.resample)
        self.erased = Erasing(erase, mean, std) if erase else None

    def __call__(self, image: Any, generator: np.random.Generator) -> Tensor:
        """Crop, resize, and what else was asked for: uint8 ``[3, size, size]``."""
        picture = self.cropped(to_pil(image), generator)
        if self.changed:
            with seeded_from(generator):
                picture = self.changed(picture)
        tensor = to_tensor(picture)
        if self.erased:
            with seeded_from(generator):
                tensor = self.erased(tensor)
        return tensor

    def cropped(self, picture: Image.Image, generator: np.random.Generator) -> Image.Image:
        """Crop, resize and mirror alone."""
        picture = self.cut(picture, self.box(*picture.size, generator))
        if self.flip and generator.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture

    def cut(self, picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """A box of the picture (left, top, right, bottom) at the output size."""
        return picture.resize((self.size, self.size), self.resample, box=box)

    def box(self, width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw what a picture of so many pixels is cropped to: left, top, right, bottom."""
        for _ in range(10):
            area = width * height * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(*self.log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left = int(generator.integers(0, width - w + 1))
                top = int(generator.integers(0, height - h + 1))
                return left, top, left + w, top + h
        # No crop of that area fits, the image is too long: the largest that the ratio allows, anywhere. For a
        # square this is CLIP's own crop.
        low, high = (math.exp(bound) for bound in self.log_ratio)
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        left, top = int(generator.integers(0, width - w + 1)), int(generator.integers(0, height - h + 1))
        return left, top, left + w, top + h
