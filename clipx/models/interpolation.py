"""Between two models of one architecture: interpolated weights, as pure functions on state dicts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipx.errors import ClipxError

State = Mapping[str, Tensor]


def interpolate(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """``(1 - alpha) * first + alpha * second`` for every entry.

    Half precision is interpolated in float32 and given back as it was. Whole numbers (counters, position ids)
    are the second's. Statistics of batch norm are interpolated like the rest: measured anew they would differ
    a little.

    Args:
        first, second: name -> tensor, the same names and shapes.
        alpha: in [0, 1]; 0 gives the first exactly, 1 the second.

    Raises:
        ClipxError: alpha outside [0, 1], or names or shapes that differ, naming one.

    Source: Wortsman et al. 2022 (WiSE-FT), equation 1.
    """
    check_alpha(alpha)
    check_same_architecture(first, second)
    found = {}
    for name, start in first.items():
        end = second[name]
        if not start.is_floating_point():
            found[name] = end.clone()
            continue
        exact = torch.promote_types(start.dtype, torch.float32)
        found[name] = ((1 - alpha) * start.to(exact) + alpha * end.to(exact)).to(start.dtype)
    return found


def fisher_average(
    first: State, second: State, alpha: float, fishers: tuple[State, State], *, floor: float = 1e-8
) -> dict[str, Tensor]:
    """``interpolate``, each weight of each model counted by how much its answers depend on it.

    Args:
        first, second, alpha: as ``interpolate`` takes them.
        fishers: diagonal Fisher information of both, 0 or more; an entry that is missing counts as ones.
        floor: smallest information of a weight, above 0.

    Returns:
        As ``interpolate``; also here alpha 0 gives the first exactly, 1 the second.

    Raises:
        ClipxError: as ``interpolate``, or a floor that is not above 0.

    Source: Matena and Raffel 2022, as in WiSE-FT's code.
    """
    check_alpha(alpha)
    check_floor(floor)
    check_same_architecture(first, second)
    found = {}
    for name, start in first.items():
        end = second[name]
        if not start.is_floating_point():
            found[name] = end.clone()
            continue
        exact = torch.promote_types(start.dtype, torch.float32)
        one, other = (
            weight * fisher.get(name, torch.ones_like(start)).to(exact).clamp_min(floor)
            for weight, fisher in zip((1 - alpha, alpha), fishers, strict=True)
        )
        share = other / (one + other)
        found[name] = ((1 - share) * start.to(exact) + share * end.to(exact)).to(start.dtype)
    return found


def check_alpha(alpha: float) -> None:
    """Check a share of the second model.

    Raises:
        ClipxError: it lies outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ClipxError(f"alpha={alpha} must lie in [0, 1]", hint="0 is the first model, 1 the second")


def check_floor(floor: float) -> None:
    """Check the smallest information of a weight.

    Raises:
        ClipxError: it is not above 0: a weight that nothing depends on would have no value.
    """
    if not 0 < floor < float("inf"):
        raise ClipxError(f"the floor of Fisher information is {floor}, must be above 0", hint="1e-8")


def check_same_architecture(first: State, second: State) -> None:
    """Check that two state dicts can be mixed.

    Raises:
        ClipxError: naming an entry that one lacks, or that has two shapes.
    """
    for name in [*first, *second]:
        one, other = first.get(name), second.get(name)
        if one is not None and other is not None and one.shape == other.shape:
            continue
        found = f"only one has {name!r}"
        if one is not None and other is not None:
            found = f"{name!r} is {list(one.shape)} in one and {list(other.shape)} in the other"
        raise ClipxError(
            f"these are weights of different architectures: {found}",
            hint="a model goes with what was fine-tuned from it",
        )
