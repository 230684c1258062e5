"""How an image vector and a text vector are compared: on the sphere, in Euclidean or in hyperbolic space."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.text import encode_short

GEOMETRIES = (
    "clip",
    "elliptic",
    "euclidean-inner",
    "euclidean",
    "euclidean-squared",
    "hyperbolic-inner",
    "hyperbolic",
    "hyperbolic-squared",
)
"""Kinds of comparison: ``clip`` is the cosine, ``elliptic`` the arc, the others what they say."""

CURVATURES = (0.1, 10.0)
"""Smallest and largest curvature (Desai et al. 2023, MERU)."""

_PRODUCTS = ("clip", "euclidean-inner")
_SPHERE = ("clip", "elliptic")


def unit_rows(features: Tensor) -> Tensor:
    """Rows ``[B, D]`` at length 1, in float32 or better."""
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def similarity(
    kind: str, inner: Tensor, image_square: Tensor, text_square: Tensor, curvature: Tensor | float = 1.0
) -> Tensor:
    """How alike vectors x and y are, from their inner products and lengths; higher is more alike.

    Args:
        kind: one of ``GEOMETRIES``.
        inner: <x, y>, of any shape.
        image_square: <x, x>, of a shape that goes with ``inner``; not looked at on the sphere, where it is 1.
        text_square: <y, y>, likewise.
        curvature: c > 0 of the hyperboloid, which is entered along its tangent at the apex; of the hyperbolic
            kinds.

    Returns:
        of the shape and dtype of ``inner``: the inner product in [-1, 1], minus an angle, minus a distance or
        minus its square, or the Lorentzian inner product, at most -1 / c. Gradients are finite everywhere:
        zero where two vectors coincide.

    Source: Chou and Alam 2024, section 3.1; Desai et al. 2023, equations 1 to 4.
    """
    if kind in _PRODUCTS:
        return inner
    tiny = torch.finfo(inner.dtype).eps
    if kind == "elliptic":
        return -torch.acos(inner.clamp(-1 + tiny, 1 - tiny))
    if kind.startswith("euclidean"):
        # Cancellation can take the square of a small distance below zero.
        square = (image_square - 2 * inner + text_square).clamp_min(0)
        return -square if kind == "euclidean-squared" else -square.clamp_min(tiny**2).sqrt()
    found = lorentzian_inner(inner, image_square, text_square, curvature)
    if kind == "hyperbolic-inner":
        return found.to(inner.dtype)
    distance = torch.acosh((-curvature * found).clamp_min(1 + 1e-12))
    scaled = distance / torch.as_tensor(curvature, dtype=distance.dtype, device=distance.device).sqrt()
    return (-scaled.square() if kind == "hyperbolic-squared" else -scaled).to(inner.dtype)


def lorentzian_inner(
    inner: Tensor, image_square: Tensor, text_square: Tensor, curvature: Tensor | float
) -> Tensor:
    """The Lorentzian inner product of x and y lifted onto the hyperboloid: float64, at most ``-1 / c``.

    Args:
        inner, image_square, text_square, curvature: as ``similarity`` takes them.

    Source: Desai et al. 2023, equations 1 to 4.
    """
    (time_x, stretch_x), (time_y, stretch_y) = (
        lifted(square, curvature) for square in (image_square, text_square)
    )
    return stretch_x * stretch_y * inner.double() - time_x * time_y


def lifted(square: Tensor, curvature: Tensor | float) -> tuple[Tensor, Tensor]:
    """The time of a vector on the hyperboloid, and what its own direction is stretched by in space; float64.

    Args:
        square: squared length of the vector in the tangent space.
        curvature: c > 0.
    """
    curved = torch.as_tensor(curvature, dtype=torch.float64, device=square.device)
    radius = (curved * square.double()).clamp_min(1e-24).sqrt()
    return radius.cosh() / curved.sqrt(), radius.sinh() / radius


class Geometry(nn.Module):
    """Compares vectors as one of ``GEOMETRIES`` does: the default comparison of a CLIP is the cosine.

    Rows are what is stored of an image or a text and what ``CLIP.score`` takes: unit rows on the sphere; in
    Euclidean space the towers' vectors times the constant D^-1/2; in hyperbolic space, times a learnt factor
    of each tower that starts there.

    Args:
        kind: one of ``GEOMETRIES``.
        width: D of the embeddings; nothing depends on it on the sphere.
        curvature: c of a hyperboloid where it starts, within ``CURVATURES``.
        learn_curvature: train it; of the hyperbolic kinds.
        learn_factors: train the factors of the towers; of the hyperbolic kinds.

    Raises:
        ClipxError: an unknown kind, or a curvature out of its range.

    Source: Chou and Alam 2024, "Embedding Geometries of Contrastive Language-Image Pre-Training".
    """

    one_vector = True
    """An image is one vector, which knows of no text."""

    def __init__(
        self,
        kind: str = "clip",
        width: int = 1,
        *,
        curvature: float = 1.0,
        learn_curvature: bool = True,
        learn_factors: bool = True,
    ) -> None:
        super().__init__()
        if kind not in GEOMETRIES:
            raise ClipxError(f"there is no comparison {kind!r}", hint=did_you_mean(kind, GEOMETRIES))
        if not CURVATURES[0] <= curvature <= CURVATURES[1]:
            raise ClipxError(
                f"curvature={curvature} must lie in [{CURVATURES[0]:g}, {CURVATURES[1]:g}]",
                hint="1 is where MERU starts",
            )
        self.kind = kind
        self.spec: dict[str, Any] = {"kind": kind}
        start = -math.log(width) / 2
        if self.is_hyperbolic:
            self.spec |= {"learn_curvature": learn_curvature, "learn_factors": learn_factors}
            self.log_curvature = nn.Parameter(torch.tensor(math.log(curvature)), learn_curvature)
            self.log_image_factor = nn.Parameter(torch.tensor(start), learn_factors)
            self.log_text_factor = nn.Parameter(torch.tensor(start), learn_factors)
        elif not self.is_sphere:
            self.factor: Tensor
            self.register_buffer("factor", torch.tensor(math.exp(start)))

    @property
    def is_sphere(self) -> bool:
        """Whether rows are unit rows."""
        return self.kind in _SPHERE

    @property
    def is_hyperbolic(self) -> bool:
        """Whether there is a curvature."""
        return self.kind.startswith("hyperbolic")

    @property
    def curvature(self) -> Tensor | float:
        """c of the hyperboloid, within ``CURVATURES`` after ``clamp``; 1 of other kinds."""
        return self.log_curvature.exp() if self.is_hyperbolic else 1.0

    def image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """What an open_clip model makes of normalised images ``[B, 3, H, W]``: ``[B, D]``."""
        return model.encode_image(images)  # type: ignore[operator]

    def text_features(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What an open_clip model makes of token ids ``[B, L]``: ``[B, D]``."""
        return encode_short(model, tokens)

    def image_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, D]`` of an image tower's vectors ``[B, D]``, in float32 or better."""
        return self._rows(features, "image")

    def text_rows(self, features: Tensor) -> Tensor:
        """Rows ``[B, D]`` of a text tower's vectors ``[B, D]``, in float32 or better."""
        return self._rows(features, "text")

    def _rows(self, features: Tensor, tower: str) -> Tensor:
        if self.is_sphere:
            return unit_rows(features)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        return wide * (getattr(self, f"log_{tower}_factor").exp() if self.is_hyperbolic else self.factor)

    def check(self, image: Tensor, text: Tensor) -> None:
        """Check that rows ``[M, D]`` and ``[N, D]`` can be compared.

        Raises:
            ClipxError: they have different widths.
        """
        if image.shape[-1] != text.shape[-1]:
            raise ClipxError(
                f"image embeddings have {image.shape[-1]} dimensions, text embeddings {text.shape[-1]}"
            )

    def image_to_text(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the similarity ``[M, N]`` of every image ``[M, D]`` with every text ``[N, D]``."""
        if self.kind in _PRODUCTS:
            return scale * image @ text.T
        found = similarity(
            self.kind, image @ text.T, squares(image)[:, None], squares(text)[None], self.curvature
        )
        return scale * found

    def text_to_image(self, text: Tensor, image: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the similarity ``[N, M]`` of every text ``[N, D]`` with every image ``[M, D]``."""
        return self.image_to_text(text, image, scale)  # every kind is symmetric

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the similarity ``[B]`` of images with the text of the same row, both ``[B, D]``."""
        if self.kind in _PRODUCTS:
            return (scale * image * text).sum(-1)
        inner = (image * text).sum(-1)
        return scale * similarity(self.kind, inner, squares(image), squares(text), self.curvature)

    def mean_of_texts(self, rows: Tensor) -> Tensor:
        """The mean ``[C, D]`` of rows ``[C, T, D]``, which stands for several texts; on the sphere, there."""
        mean = rows.mean(-2)
        return functional.normalize(mean, dim=-1) if self.is_sphere else mean

    def pooled_images(self, rows: Tensor) -> Tensor:
        """Unit rows ``[N, D]`` of image rows ``[N, D]``, for what compares images with images."""
        return rows if self.is_sphere else unit_rows(rows)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the curvature within ``CURVATURES``; called after every optimizer step."""
        if self.is_hyperbolic:
            self.log_curvature.clamp_(*map(math.log, CURVATURES))


def squares(rows: Tensor) -> Tensor:
    """Squared lengths ``[B]`` of rows ``[B, D]``."""
    return rows.square().sum(-1)


COSINE = Geometry()
"""The comparison of CLIP; it has no parameters."""
