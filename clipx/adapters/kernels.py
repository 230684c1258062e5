"""Kernels on the unit sphere, from inner products: how alike two features are."""

import math

import torch
from torch import Tensor


def exp_cos(affinity: Tensor, beta: float | Tensor) -> Tensor:
    """The von Mises kernel ``exp(-beta (1 - a.b))`` of inner products, any shape, in [-1, 1].

    On unit vectors it is the Gaussian kernel of variance 1 / beta, for ``|a - b|^2 = 2 - 2 a.b``.

    Args:
        affinity: inner products of unit vectors.
        beta: sharpness, 0 or more.

    Source: Zhang et al. 2022 (Tip-Adapter), equation 3.
    """
    return ((affinity - 1) * beta).exp_()


def rbf(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """The Gaussian kernel ``exp(-beta |a - b|^2 / 2)``, ``[N, M]``, of rows ``[N, D]`` and ``[M, D]``.

    It is ``exp_cos`` where rows have unit length.
    """
    return (torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() * (-beta / 2)).exp()


def rff(rows: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """Random Fourier features ``[N, R]`` whose inner products approach the kernel they were drawn for.

    Args:
        rows: ``[N, D]``.
        frequencies: ``[R, D]``.
        phases: ``[R]``, in [0, 2 pi).

    Source: Rahimi and Recht 2007, algorithm 1.
    """
    return (rows @ frequencies.T + phases).cos() * math.sqrt(2 / len(frequencies))


def draw_rff(dims: int, count: int, *, beta: float, seed: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies ``[count, dims]`` and phases ``[count]`` of ``rff`` for the kernel ``exp_cos`` of ``beta``.

    Args:
        dims: of the features.
        count: the more, the closer; the error of a value falls as 1 / sqrt(count).
        beta: sharpness of the kernel, above 0.
        seed: of the draw.
        like: a tensor whose dtype and device they get.
    """
    generator = torch.Generator().manual_seed(seed)
    frequencies = math.sqrt(beta) * torch.randn(count, dims, generator=generator, dtype=torch.float64)
    phases = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    return frequencies.to(like), phases.to(like)
