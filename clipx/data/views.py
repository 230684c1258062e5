"""Further views of an image and of its caption, for objectives that compare views with one another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from clipx.data.fields import COVER, IMAGE_VIEWS
from clipx.data.text_changes import TextChange
from clipx.data.transforms import TrainTransform, to_pil, to_tensor
from clipx.errors import ClipxError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a crop, pixels."""


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
        return self.with_box(to_pil(image), generator)[0]

    def with_box(self, picture: Image.Image, generator: np.random.Generator) -> tuple[Tensor, Box]:
        """One view, and the crop that it is of; ``flip`` may have mirrored it."""
        box = self.crop.box(*picture.size, generator)
        view = self.crop.cut(picture, box)
        if self.crop.flip and generator.random() < self.crop.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(self.recoloured(view, generator)), box

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
        """Brightness, contrast, saturation and hue changed, in an order that is drawn.

        What torchvision's ``ColorJitter`` does to a PIL image, without what it costs to call and to seed.
        """
        *strengths, hue = self.jitter
        for change in generator.permutation(4):
            if change < 3 and strengths[change]:
                strength = strengths[change]
                factor = generator.uniform(max(0.0, 1 - strength), 1 + strength)
                picture = _ENHANCERS[change](picture).enhance(factor)
            elif change == 3 and hue:
                picture = with_hue(picture, generator.uniform(-hue, hue))
        return picture


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def with_hue(picture: Image.Image, shift: float) -> Image.Image:
    """An RGB picture whose hues are turned by a share of the circle, in [-0.5, 0.5]."""
    hue, *others = picture.convert("HSV").split()
    hue = hue.point([(tone + int(shift * 255)) % 256 for tone in range(256)])
    return Image.merge("HSV", (hue, *others)).convert("RGB")


class Views:
    """What makes the fields ``image_view_<k>`` and ``text_view_<k>`` of a batch, and what they lie in.

    Args:
        image: what draws a view of an image.
        text: of a caption another.
        fresh_captions: whether each view of the text draws a caption of its own among those of the image.
    """

    def __init__(
        self,
        image: ImageView,
        text: TextChange,
        fresh_captions: bool = False,
    ) -> None:
        self.image = image
        self.text = text
        self.fresh_captions = fresh_captions

    def images(self, image: Any, generator: np.random.Generator, fields: Sequence[str]) -> dict[str, Tensor]:
        """Those of the ``fields`` that are made of the image, views uint8 ``[3, size, size]``.

        Where they hold a cover, both views are drawn, and a clean crop around them.
        """
        picture, covered = to_pil(image), not {*COVER}.isdisjoint(fields)
        drawn = {
            field: self.image.with_box(picture, generator)
            for field in IMAGE_VIEWS
            if covered or field in fields
        }
        found = {field: view for field, (view, _) in drawn.items()}
        if covered:
            boxes = [box for _, box in drawn.values()]
            cover = covering_box(boxes, *picture.size, generator)
            found["cover_view"] = to_tensor(self.image.crop.cut(picture, cover))
            found["view_boxes"] = shares_of(cover, boxes)
        return {field: value for field, value in found.items() if field in fields}

    def texts(
        self, drawn: str, captions: Sequence[str], generator: np.random.Generator, fields: Sequence[str]
    ) -> dict[str, str]:
        """The text of each of the ``fields``, views of the caption ``drawn`` or of one of ``captions``."""
        found = {}
        for field in fields:
            caption = captions[int(generator.integers(len(captions)))] if self.fresh_captions else drawn
            found[field] = self.text(caption, generator)
        return found


def covering_box(boxes: Sequence[Box], width: int, height: int, generator: np.random.Generator) -> Box:
    """A crop that holds others: the smallest, each side moved outwards by a random number of pixels.

    Args:
        boxes: one or more, within the picture.
        width, height: of the picture, pixels.
        generator: of the draws.

    Source: Yang et al. 2023 (A-CLIP), section 3.3; the published code moves the corner but not the far sides,
        so that its crop may miss a part of the others.
    """
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (
        int(generator.integers(0, min(lefts) + 1)),
        int(generator.integers(0, min(tops) + 1)),
        int(generator.integers(max(rights), width + 1)),
        int(generator.integers(max(bottoms), height + 1)),
    )


def shares_of(cover: Box, boxes: Sequence[Box]) -> Tensor:
    """Where boxes lie in another: x0, y0, x1, y1 as shares of its sides, float32 ``[K, 4]``."""
    left, top, right, bottom = cover
    corner, sides = torch.tensor([left, top] * 2), torch.tensor([right - left, bottom - top] * 2)
    return (torch.tensor(boxes) - corner) / sides


def views_of(size: int, settings: Mapping[str, Any], fields: Sequence[str] = ()) -> Views:
    """The views that ``augment.view`` and ``augment.text_view`` of a configuration describe.

    Args:
        size: side of the images, pixels.
        settings: ``view``, the keys of ``ImageView``; ``text_view``, those of ``TextChange`` and
            ``fresh_captions``.
        fields: that will be asked for.

    Raises:
        ClipxError: a key or a value that they do not take, or views that are mirrored where it is asked for
            their place.
    """
    text = dict(settings["text_view"])
    fresh = bool(text.pop("fresh_captions", False))
    view = ImageView(size, **settings["view"])
    if view.crop.flip and not {*COVER}.isdisjoint(fields):
        raise ClipxError(
            f"augment.view.flip={view.crop.flip} mirrors views whose place in the image is asked for",
            hint="augment.view.flip=0",
        )
    return Views(view, TextChange(**text), fresh)
