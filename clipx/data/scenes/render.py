"""From a scene to pixels and to the ground truth of pixels: image, masks, boxes, depth."""

import math
from collections.abc import Sequence

import numpy as np

from clipx.data.scenes import surfaces
from clipx.data.scenes.shapes import REACH, TABLE, table
from clipx.data.scenes.vocabulary import TINTS
from clipx.data.scenes.world import Background, Scene, Thing

CELLS = (TABLE - 1) / (2 * REACH)
FINE_ABOVE = 30.0
"""Radius in pixels above which tables are interpolated; below, the nearest cell is within a sixteenth of a pixel."""


def paint(scene: Scene, size: int) -> np.ndarray:
    """The scene before style and words: float32 [size, size, 3], sRGB 0..255."""
    image = ground(scene.background, size)
    for thing in sorted(scene.things, key=lambda thing: -thing.depth):
        _add(image, thing, size)
    return image


def ground(background: Background, size: int) -> np.ndarray:
    """The background alone: float32 [size, size, 3], sRGB 0..255."""
    colour = np.array(TINTS[background.tint][background.tone], dtype=np.float32)
    image = np.empty((size, size, 3), dtype=np.float32)
    if background.kind == "plain":
        image[:] = colour
        return image
    if background.kind == "gradient":
        field = surfaces.gradient(size, int(background.variant * surfaces.DIRECTIONS))
        strength = np.float32(20.0)
    else:
        row, column = int(background.down * size), int(background.across * size)
        if background.kind == "noise":
            whole, strength = surfaces.noise(size), np.float32(15.0)
        else:
            whole = surfaces.pattern(size, int(background.variant * surfaces.PATTERNS))
            strength = np.float32(9.0)
        field = whole[row : row + size, column : column + size]
    # Scaled by the colour, dark grounds would lose their pattern; added, light ones stay within range.
    np.add(field[:, :, None] * strength, colour, out=image)
    return image


def _look_up(thing: Thing, size: int) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Rows, columns, the table's [h, w, 3] values there, and the [h, w] light; None where the thing is outside."""
    radius, x, y = thing.radius * size, thing.x * size, thing.y * size
    reach = radius * 1.3
    top, bottom = max(0, int(y - reach)), min(size, int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(size, int(x + reach) + 2)
    if top >= bottom or left >= right:
        return None
    step = CELLS / radius
    cosine, sine = math.cos(thing.angle) * step, math.sin(thing.angle) * step
    across = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    down = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
    middle = np.float32((TABLE - 1) / 2)
    u = across * np.float32(cosine) + (down * np.float32(sine) + middle)
    v = down * np.float32(cosine) + (middle - across * np.float32(sine))
    np.clip(u, 0, TABLE - 1.001, out=u)
    np.clip(v, 0, TABLE - 1.001, out=v)
    values, pattern = table(thing.shape), surfaces.texture(thing.texture)
    if radius <= FINE_ABOVE:
        cell = (v + np.float32(0.5)).astype(np.intp) * TABLE + (u + np.float32(0.5)).astype(np.intp)
        found = values[cell]
        light = found[:, :, 1] if pattern is None else found[:, :, 1] + pattern[cell]
    else:
        column, row = u.astype(np.intp), v.astype(np.intp)
        cell, right_share, lower_share = row * TABLE + column, (u - column)[:, :, None], (v - row)[:, :, None]
        upper = values[cell] * (1 - right_share) + values[cell + 1] * right_share
        lower = values[cell + TABLE] * (1 - right_share) + values[cell + TABLE + 1] * right_share
        found = upper * (1 - lower_share) + lower * lower_share
        light = found[:, :, 1]
        if pattern is not None:
            light = light + pattern[cell]
    return slice(top, bottom), slice(left, right), found, light


def _add(image: np.ndarray, thing: Thing, size: int) -> None:
    looked_up = _look_up(thing, size)
    if looked_up is None:
        return
    rows, columns, found, light = looked_up
    cover = np.clip(np.float32(0.5) - found[:, :, 0] * np.float32(thing.radius * size), 0, 1)[:, :, None]
    shade = np.clip(light * np.float32(surfaces.SHADES), 0, surfaces.SHADES - 1).astype(np.intp)
    patch = image[rows, columns]
    patch *= 1 - found[:, :, 2:]
    patch += cover * (surfaces.shades(thing.colour)[shade] - patch)


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Round float 0..255 to uint8, in the same shape."""
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def masks(scene: Scene, size: int) -> np.ndarray:
    """Visible pixels of every thing, in the order of ``scene.things``: bool [K, size, size]; no two share a pixel."""
    result = np.zeros((len(scene.things), size, size), dtype=bool)
    for number in sorted(range(len(scene.things)), key=lambda number: -scene.things[number].depth):
        thing = scene.things[number]
        looked_up = _look_up(thing, size)
        if looked_up is None:
            continue
        rows, columns, found, _ = looked_up
        inside = found[:, :, 0] <= 0
        result[:, rows, columns] &= ~inside
        result[number, rows, columns] = inside
    return result


def boxes(visible: np.ndarray) -> np.ndarray:
    """Extents of masks: float32 [K, 4], x0, y0, x1, y1 in pixels, x1 and y1 exclusive; -1 where nothing is visible."""
    result = np.full((len(visible), 4), -1, dtype=np.float32)
    for number, mask in enumerate(visible):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            result[number] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return result


def depths(scene: Scene) -> np.ndarray:
    """Depth rank of every thing, 0 nearest: int64 [K]."""
    return np.array([thing.depth for thing in scene.things], dtype=np.int64)


def render(scene: Scene, size: int) -> np.ndarray:
    """The scene as uint8 [size, size, 3]."""
    return to_pixels(paint(scene, size))


def render_batch(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Many scenes as uint8 [N, size, size, 3], each pixel as ``render`` gives it."""
    return (
        np.stack([render(scene, size) for scene in scenes])
        if scenes
        else np.zeros((0, size, size, 3), np.uint8)
    )
