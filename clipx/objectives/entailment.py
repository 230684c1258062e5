"""Entailment: a caption says less than its image shows, so the image lies in the cone behind its caption."""

import math

import torch
from torch import Tensor, nn

from clipx.errors import ClipxError
from clipx.models.geometry import Geometry, lifted, lorentzian_inner, squares
from clipx.training.encoded import Encoded


def outside_cone(
    parent: Tensor, child: Tensor, min_radius: Tensor | float, curvature: Tensor | float | None = None
) -> Tensor:
    """By what angle each child lies outside the cone of its parent, in radians; negative inside.

    The cone opens from the parent away from the origin, and is the wider the nearer the parent is to it.

    Args:
        parent: ``[B, D]``.
        child: ``[B, D]``.
        min_radius: K > 0, the length below which the cone of a parent is a half space; 0 for no width at all:
            the angle itself.
        curvature: c of the hyperboloid that vectors are lifted onto; None for Euclidean space.

    Returns:
        ``[B]`` in [-pi / 2, pi], with finite gradients.

    Source: Ganea et al. 2018; Le et al. 2019; Desai et al. 2023, equations 7 to 9; Chou and Alam 2024.
    """
    inner, square, other = (parent * child).sum(-1), squares(parent), squares(child)
    if curvature is None:
        length = square.clamp_min(_tiny(square) ** 2).sqrt()
        apart = (square - 2 * inner + other).clamp_min(_tiny(square) ** 2).sqrt()
        cosine, width = (inner - square) / (apart * length), min_radius / length
    else:
        curved = torch.as_tensor(curvature, dtype=torch.float64, device=parent.device)
        (time, stretch), (other_time, _) = lifted(square, curved), lifted(other, curved)
        product = curved * lorentzian_inner(inner, square, other, curved)
        length = stretch * square.double().clamp_min(1e-24).sqrt()
        cosine = (other_time + time * product) / (length * (product.square() - 1).clamp_min(1e-24).sqrt())
        width = 2 * min_radius / (curved.sqrt() * length)
    limit = 1 - _tiny(cosine)
    aperture = torch.asin(width.clamp_max(limit))
    return (torch.acos(cosine.clamp(-limit, limit)) - aperture).to(parent.dtype)


def _tiny(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).eps)


def entailment(
    parent: Tensor, child: Tensor, min_radius: Tensor | float, curvature: Tensor | float | None = None
) -> Tensor:
    """Mean of what children lie outside the cones of their parents, a scalar in [0, pi].

    Args:
        parent, child, min_radius, curvature: as ``outside_cone`` takes them.
    """
    return outside_cone(parent, child, min_radius, curvature).clamp_min(0).mean()


class Entailment(nn.Module):
    """Draws each image into the cone of its caption; beside a contrastive objective.

    The geometry is the model's: Euclidean or hyperbolic. Reports the share of pairs inside as
    ``inside_cone``.

    Args:
        min_radius: K of ``outside_cone``, 0 or more.
        final_min_radius: K at the end of the training, reached linearly; None: it stays.

    Raises:
        ClipxError: a K below 0.

    Source: Desai et al. 2023 (MERU); Chou and Alam 2024 (EuCLIP).
    """

    needs = ("image", "text")
    pooled = True
    any_comparison = True

    def __init__(self, min_radius: float = 0.1, final_min_radius: float | None = None) -> None:
        super().__init__()
        last = min_radius if final_min_radius is None else final_min_radius
        for name, value in (("min_radius", min_radius), ("final_min_radius", last)):
            if not 0 <= value < math.inf:
                raise ClipxError(f"{name}={value} of entailment must be 0 or more", hint="0.1")
        self.radii = (min_radius, last)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"entailment": loss}`` of an encoded batch.

        Raises:
            ClipxError: the model compares on the sphere, or by a mixture: there is no cone.
        """
        geometry = encoded.comparison
        if not isinstance(geometry, Geometry) or geometry.is_sphere:
            raise ClipxError(
                f"entailment needs lengths, a model that compares by {geometry.kind} has none",
                hint="model.comparison.kind=euclidean-squared, or hyperbolic",
            )
        curvature = geometry.curvature if geometry.is_hyperbolic else None
        first, last = self.radii
        radius = first + (last - first) * encoded.progress
        found = outside_cone(encoded.text(), encoded.image(), radius, curvature)
        encoded.note("inside_cone", (found <= 0).float().mean())
        return {"entailment": found.clamp_min(0).mean()}
