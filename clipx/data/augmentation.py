"""timm's RandAugment and random erasing on the bytes of one image, with draws that can be had again."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipx.errors import ClipxError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the normalisation of OpenAI's models."""


def rand_augment_of(
    description: str, size: int, mean: Sequence[float], resample: Image.Resampling
) -> Callable[[Image.Image], Image.Image]:
    """A RandAugment by timm's name for it, set up as timm does for training.

    Args:
        description: such as ``rand-m9-mstd0.5-inc1``: magnitude 9, noise on it of deviation 0.5, severity
            that rises with magnitude.
        size: side of the images, pixels; shifts go up to 0.45 of it.
        mean: colour of what comes into view, in [0, 1].
        resample: of rotations, shears and shifts.

    Raises:
        ClipxError: timm does not know such a description.

    Source: Cubuk et al. 2020 (RandAugment); timm's ``transforms_imagenet_train``.
    """
    from timm.data.auto_augment import rand_augment_transform

    settings = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": resample,
    }
    try:
        return rand_augment_transform(str(description), settings)
    except (AssertionError, KeyError, ValueError) as error:
        raise ClipxError(
            f"rand_augment={description} is no RandAugment of timm", hint="rand-m9-mstd0.5-inc1"
        ) from error


class Erasing:
    """Replace a random rectangle of 2% to a third of an image by noise of a normalised image, now and then.

    Args:
        probability: in [0, 1].
        mean, std: of the normalisation.

    Source: Zhong et al. 2020 (Random Erasing), as timm's mode ``pixel``. There the noise is not cut at black
    and white, here it is: images travel as bytes.
    """

    def __init__(self, probability: float, mean: Sequence[float], std: Sequence[float]) -> None:
        from timm.data.random_erasing import RandomErasing

        self.draw: Any = RandomErasing(probability, mode="pixel", device="cpu")
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 ``[3, H, W]`` of uint8 ``[3, H, W]``."""
        noise = self.draw(torch.full(image.shape, torch.nan))
        bytes_ = ((noise * self.std + self.mean) * 255).round().clamp(0, 255)
        return torch.where(noise.isnan(), image, bytes_.nan_to_num().to(torch.uint8))


@contextlib.contextmanager
def seeded_from(generator: np.random.Generator) -> Iterator[None]:
    """Let Python's, numpy's and torch's own generators draw what ``generator`` decides; they go on as before.

    For libraries that draw from these: an image stays a function of its own generator.
    """
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    seed = int(generator.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches every device
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])
