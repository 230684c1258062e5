"""A scene as facts: things on a background, from which pixels, captions and ground truth all follow."""

from dataclasses import dataclass

OVERLAP = 0.9
"""Two things overlap when their centres are nearer than this share of the sum of their radii."""

APART = 0.08
"""Least distance of centres along an axis, fraction of the image, for left, right, above, below to hold."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. Lengths are fractions of the image side, y grows downwards, ``angle`` is in radians.

    ``depth`` is its rank in the scene, 0 nearest to the eye.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    depth: int


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the things: kind, tint, tone (0 light, 1 middle, 2 dark), variation in [0, 1)."""

    kind: str
    tint: str
    tone: int
    variant: float
    across: float
    down: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a background, perhaps with words written on it; ``key`` seeds the noise its style adds."""

    things: tuple[Thing, ...]
    background: Background
    words: str | None = None
    style: str | None = None
    key: int = 0


def overlap(first: Thing, second: Thing) -> bool:
    """Whether two things hide one another in part."""
    reach = OVERLAP * (first.radius + second.radius)
    return (first.x - second.x) ** 2 + (first.y - second.y) ** 2 < reach * reach


def holds(relation: str, first: Thing, second: Thing) -> bool:
    """Whether ``first`` stands in the relation (left, right, above, below, front, behind) to ``second``."""
    if relation == "left":
        return second.x - first.x >= APART
    if relation == "right":
        return first.x - second.x >= APART
    if relation == "above":
        return second.y - first.y >= APART
    if relation == "below":
        return first.y - second.y >= APART
    if relation == "front":
        return overlap(first, second) and first.depth < second.depth
    if relation == "behind":
        return overlap(first, second) and first.depth > second.depth
    raise ValueError(f"no relation {relation!r}")


def relation(first: Thing, second: Thing) -> str | None:
    """The relation a person would name: in front or behind where they overlap, else along the longer axis.

    Returns:
        None where the two are too near one another to tell.
    """
    if overlap(first, second):
        return "front" if first.depth < second.depth else "behind"
    across, down = second.x - first.x, second.y - first.y
    if abs(across) >= abs(down):
        name = "left" if across > 0 else "right"
    else:
        name = "above" if down > 0 else "below"
    return name if holds(name, first, second) else None
