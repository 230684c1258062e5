"""Shapes as signed distances, and the tables of distance, light and shadow that rendering looks up."""

from collections.abc import Callable
from functools import cache

import numpy as np

from clipx.data.scenes.world import Thing

REACH = 1.36
"""Tables cover object coordinates -REACH .. REACH; the object lies within about -1 .. 1, y downwards."""


def polygon(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exact signed distance to a closed polygon, negative inside.

    Args:
        points: vertices in order, [N, 2].
        x, y: coordinates, any equal shapes.

    Source: Inigo Quilez, "2D distance functions", sdPolygon.
    """
    best = np.full(x.shape, np.inf, dtype=x.dtype)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        crosses = (y >= ay) != (y >= by)
        inside ^= crosses & ((ex * wy > ey * wx) == (by > ay))
    return np.where(inside, -1, 1) * np.sqrt(best)


def _hexagon() -> np.ndarray:
    # A regular one is a circle to whoever sees it fifteen pixels wide; this one is broader than high.
    return np.array([[-1.0, 0], [-0.5, -0.64], [0.5, -0.64], [1.0, 0], [0.5, 0.64], [-0.5, 0.64]])


def _star() -> np.ndarray:
    angle = np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.44)
    return np.stack([radius * np.sin(angle), 0.04 - radius * np.cos(angle)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 49)[:-1]
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16.6, (y - 2.4) / 16.0], axis=1)


def _drop() -> np.ndarray:
    radius, middle = 0.62, 0.34
    # The sides leave the tip at (0, -0.98) as tangents of the round bottom.
    lean = np.arcsin(radius / (middle + 0.98))
    angle = np.linspace(-lean, np.pi + lean, 34)
    bottom = np.stack([radius * np.cos(angle), middle + radius * np.sin(angle)], axis=1)
    return np.concatenate([bottom, [[0.0, -0.98]]])


def _cross() -> np.ndarray:
    a, b = 0.32, 0.9
    return np.array(
        [
            [-a, -b],
            [a, -b],
            [a, -a],
            [b, -a],
            [b, a],
            [a, a],
            [a, b],
            [-a, b],
            [-a, a],
            [-b, a],
            [-b, -a],
            [-a, -a],
        ]
    )


def _arrow() -> np.ndarray:
    return np.array(
        [[-0.95, -0.24], [0.1, -0.24], [0.1, -0.72], [0.98, 0], [0.1, 0.72], [0.1, 0.24], [-0.95, 0.24]]
    )


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.7) - 0.25


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x + 0.16
    return np.maximum(np.hypot(x, y) - 0.95, 0.78 - np.hypot(x - 0.5, y + 0.06))


def _outline(points: np.ndarray, rounding: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    shrunk = points * (1 - rounding)
    return lambda x, y: polygon(shrunk, x, y) - rounding


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _outline(np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]), 0.05),
    "triangle": _outline(np.array([[0, -0.94], [0.98, 0.76], [-0.98, 0.76]]), 0.05),
    "star": _outline(_star(), 0.03),
    "heart": _outline(_heart(), 0.0),
    "cross": _outline(_cross(), 0.05),
    "ring": _ring,
    "diamond": _outline(np.array([[0, -1.0], [0.66, 0], [0, 1.0], [-0.66, 0]]), 0.04),
    "crescent": _crescent,
    "hexagon": _outline(_hexagon(), 0.03),
    "arrow": _outline(_arrow(), 0.04),
    "drop": _outline(_drop(), 0.0),
}
"""Signed distance of every shape in object coordinates, ``f(x, y) -> distance``, negative inside."""


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Object coordinates of a table's cells: x, y float32 [side, side]."""
    axis = (np.arange(side, dtype=np.float32) / (side - 1) * 2 - 1) * np.float32(REACH)
    x, y = np.meshgrid(axis, axis)
    return x, y


@cache
def table(shape: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance of a shape and the light its shadow leaves the ground, over ``grid(side)``: float32 [side**2].

    Distance is in object units, negative inside; the light that is left is a share in 0..1. Light comes from
    the top left.
    """
    x, y = grid(side)
    behind = DISTANCES[shape](x - 0.09, y - 0.13)
    shadow = 0.34 * np.clip(0.62 - behind / 0.3, 0, 1) ** 2
    # Nothing may be cut off where the table ends.
    fade = np.clip((REACH - np.maximum(np.abs(x), np.abs(y))) / 0.12, 0, 1)
    return _flat(DISTANCES[shape](x, y)), _flat(1 - shadow * fade)


def covered(front: Thing, back: Thing) -> float:
    """Share of a thing that a nearer one hides, 0..1, to within a few per cent."""
    side = 24
    x, y = grid(side)
    inside = DISTANCES[back.shape](x, y) <= 0
    scale = np.float32(back.radius / front.radius)
    over = x * scale + np.float32((back.x - front.x) / front.radius)
    down = y * scale + np.float32((back.y - front.y) / front.radius)
    return float((DISTANCES[front.shape](over[inside], down[inside]) <= 0).mean())


def light(shape: str, side: int) -> np.ndarray:
    """How a shape, as a soft cushion, catches the light: float32 [side**2] in 0..1, 0.5 for its base."""
    x, y = grid(side)
    distance = table(shape, side)[0].reshape(side, side)
    slope_y, slope_x = np.gradient(distance, x[0, 1] - x[0, 0])
    edge = np.clip(1 + distance / 0.26, 0, 1) ** 1.5
    return _flat(
        np.clip(0.52 - 0.13 * (0.6 * x + 0.8 * y) - 0.24 * edge * (0.6 * slope_x + 0.8 * slope_y), 0, 1)
    )


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
