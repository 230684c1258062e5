"""Where things go: apart from one another, or one pair overlapping without hiding the farther one."""

import math
from collections.abc import Sequence

from clipx.data.scenes.draws import Draws

GAP = 0.025
MARGIN = 0.015
TRIES = 12
LAYOUTS = 6
Place = tuple[float, float, float]
"""x, y, radius in fractions of the image side."""


def place_apart(radii: Sequence[float], draws: Draws) -> list[Place]:
    """Places for things of these radii (fractions of the image) that neither overlap nor leave the image.

    Where they do not fit after several layouts, all radii shrink alike until they do.
    """
    scale = 1.0
    while True:
        for _ in range(LAYOUTS):
            places = _layout([radius * scale for radius in radii], draws)
            if places:
                return places
        scale *= 0.95


def _layout(radii: Sequence[float], draws: Draws) -> list[Place] | None:
    places: list[Place] = []
    for radius in radii:
        for _ in range(TRIES):
            low, high = radius + MARGIN, 1 - radius - MARGIN
            x, y = draws.uniform(low, high), draws.uniform(low, high)
            if is_free(x, y, radius, places):
                places.append((x, y, radius))
                break
        else:
            return None
    return places


def is_free(x: float, y: float, radius: float, places: Sequence[Place]) -> bool:
    """Whether a thing at (x, y) keeps its distance from every place taken."""
    for other_x, other_y, other_radius in places:
        reach = radius + other_radius + GAP
        if (x - other_x) ** 2 + (y - other_y) ** 2 < reach * reach:
            return False
    return True


def place_overlapping(radii: Sequence[float], draws: Draws) -> list[Place]:
    """Places in which the circles around the first two things overlap and all others stay apart."""
    scale = 1.0
    while True:
        for _ in range(LAYOUTS):
            places = _overlapping_layout([radius * scale for radius in radii], draws)
            if places:
                return places
        scale *= 0.95


def _overlapping_layout(radii: Sequence[float], draws: Draws) -> list[Place] | None:
    first, second = radii[0], radii[1]
    low, high = first + MARGIN, 1 - first - MARGIN
    x, y = draws.uniform(low, high), draws.uniform(low, high)
    distance = draws.uniform(0.5, 0.88) * (first + second)
    turn = draws.uniform(0, 2 * math.pi)
    other_x, other_y = x + distance * math.cos(turn), y + distance * math.sin(turn)
    low, high = second + MARGIN, 1 - second - MARGIN
    if not (low <= other_x <= high and low <= other_y <= high):
        return None
    places: list[Place] = [(x, y, first), (other_x, other_y, second)]
    for radius in radii[2:]:
        for _ in range(TRIES):
            low, high = radius + MARGIN, 1 - radius - MARGIN
            x, y = draws.uniform(low, high), draws.uniform(low, high)
            if is_free(x, y, radius, places):
                places.append((x, y, radius))
                break
        else:
            return None
    return places
