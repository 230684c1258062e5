"""Further views of an image and of its caption, for objectives that compare views with one another."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from clipx.data.augmentation import seeded_from
from clipx.data.text_changes import TextChange
from clipx.data.transforms import TrainTransform, to_pil, to_tensor
from clipx.errors import ClipxError


class ImageView:
    """A strongly changed view of an image, as SimCLR, MoCo v2 and BYOL draw it: crop, colours, blur.

    Draws come from the generator handed in, so a view is a pure function of it.

    Args:
        size: output side, pixels.
        scale: smallest and largest share of the area that the crop keeps, in (0, 1].
        ratio: smallest and largest width over height of the crop.
        flip: probability of a left-right mirror, in [0, 1].
        jitter: largest relative changes of brightness, contrast and saturation, and of the hue in [0, 0.5].
        jitter_share: probability of the jitter, in [0, 1].
        gray: probability of a view without colours, in [0, 1].
        blur: probability of a Gaussian blur, in [0, 1].
        blur_sigma: smallest and largest deviation of the blur, pixels of an image of 224; smaller images get
            less in proportion.
        solarize: probability that the bright half of the tones is inverted, in [0, 1].

    Raises:
        ClipxError: an argument outside its range.

    Source: Chen et al. 2020 (SimCLR), appendix A; Chen et al. 2020 (MoCo v2); Grill et al. 2020 (BYOL).
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: Sequence[float] = (0.4, 0.4, 0.4, 0.1),
        jitter_share: float = 0.8,
        gray: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize: float = 0.0,
    ) -> None:
        shares = {"jitter_share": jitter_share, "gray": gray, "blur": blur, "solarize": solarize}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ClipxError(f"{name} is {share}, must lie in [0, 1]")
        if len(jitter) != 4 or min(jitter) < 0 or max(jitter[:3]) > 1 or jitter[3] > 0.5:
            raise ClipxError(
                f"jitter is {list(jitter)}",
                hint="brightness, contrast and saturation in [0, 1], hue in [0, 0.5]",
            )
        if not 0 < blur_sigma[0] <= blur_sigma[1] < math.inf:
            raise ClipxError(f"blur_sigma is {list(blur_sigma)}", hint="smallest, largest, above 0")
        self.crop = TrainTransform(size, scale, ratio, flip)
        self.size = size
        self.jitter = tuple(jitter)
        self.jitter_share = jitter_share
        self.gray = gray
        self.blur = blur
        self.blur_sigma = blur_sigma
        self.solarize = solarize

    def __call__(self, image: Any, generator: np.random.Generator) -> Tensor:
        """One view: uint8 ``[3, size, size]``."""
        return to_tensor(self.recoloured(self.crop.cropped(to_pil(image), generator), generator))

    def recoloured(self, picture: Image.Image, generator: np.random.Generator) -> Image.Image:
        """All but the crop and the mirror."""
        if generator.random() < self.jitter_share and any(self.jitter):
            picture = self._jittered(picture, generator)
        if generator.random() < self.gray:
            picture = picture.convert("L").convert("RGB")
        if generator.random() < self.blur:
            sigma = generator.uniform(*self.blur_sigma) * self.size / 224
            picture = picture.filter(ImageFilter.GaussianBlur(sigma))
        if generator.random() < self.solarize:
            picture = ImageOps.solarize(picture)
        return picture

    def _jittered(self, picture: Image.Image, generator: np.random.Generator) -> Image.Image:
        from torchvision.transforms import ColorJitter

        with seeded_from(generator):
            return ColorJitter(*self.jitter)(picture)


class Views:
    """What makes the fields ``image_view_<k>`` and ``text_view_<k>`` of a batch.

    Args:
        image: of an image a view uint8 ``[3, H, W]``.
        text: of a caption another.
        fresh_captions: whether each view of the text draws a caption of its own among those of the image.
    """

    def __init__(
        self,
        image: Callable[[Any, np.random.Generator], Tensor],
        text: TextChange,
        fresh_captions: bool = False,
    ) -> None:
        self.image = image
        self.text = text
        self.fresh_captions = fresh_captions

    def texts(
        self, drawn: str, captions: Sequence[str], generator: np.random.Generator, fields: Sequence[str]
    ) -> dict[str, str]:
        """The text of each of the ``fields``, views of the caption ``drawn`` or of one of ``captions``."""
        found = {}
        for field in fields:
            caption = captions[int(generator.integers(len(captions)))] if self.fresh_captions else drawn
            found[field] = self.text(caption, generator)
        return found


def views_of(size: int, settings: Mapping[str, Any]) -> Views:
    """The views that ``augment.view`` and ``augment.text_view`` of a configuration describe.

    Args:
        size: side of the images, pixels.
        settings: ``view``, the keys of ``ImageView``; ``text_view``, those of ``TextChange`` and
            ``fresh_captions``.

    Raises:
        ClipxError: a key or a value that they do not take.
    """
    text = dict(settings["text_view"])
    fresh = bool(text.pop("fresh_captions", False))
    return Views(ImageView(size, **settings["view"]), TextChange(**text), fresh)
