"""From a scene to pixels and to the ground truth of pixels: image, masks, boxes, depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipx.data.scenes import styles, surfaces, words
from clipx.data.scenes.shapes import REACH, table
from clipx.data.scenes.vocabulary import TINTS
from clipx.data.scenes.world import Background, Scene, Thing

LEVELS = ((8.0, 96), (16.0, 192), (32.0, 384))
"""Table side by largest radius in pixels: the nearest cell is then within a ninth of a pixel, and tables stay
small enough for the processor's cache. Above the last radius the last table is interpolated."""


def paint(scene: Scene, size: int) -> np.ndarray:
    """The scene before style and words: float32 [3, size, size], sRGB 0..255."""
    image = ground(scene.background, size)
    for thing in sorted(scene.things, key=lambda thing: -thing.depth):
        _add(image, thing, size)
    return image


def ground(background: Background, size: int) -> np.ndarray:
    """The background alone: float32 [3, size, size], sRGB 0..255."""
    colour = np.array(TINTS[background.tint][background.tone], dtype=np.float32)[:, None, None]
    image = np.empty((3, size, size), dtype=np.float32)
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
    # Scaled by the colour, dark grounds would lose their pattern; so it is added.
    np.add(field * strength, colour, out=image)
    np.minimum(image, 255, out=image)
    return image


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where a thing falls on the pixel grid: its rows and columns, and how to look its tables up there."""

    rows: slice
    columns: slice
    side: int
    cell: np.ndarray
    right: np.ndarray | None
    lower: np.ndarray | None

    def sample(self, values: np.ndarray) -> np.ndarray:
        """Values of a table, [side**2], at every pixel of the footprint: [h, w]."""
        if self.right is None or self.lower is None:
            return values.take(self.cell, mode="clip")
        upper, lower = self.cell, self.cell + self.side
        above = values.take(upper, mode="clip") * (1 - self.right)
        above += values.take(upper + 1, mode="clip") * self.right
        below = values.take(lower, mode="clip") * (1 - self.right)
        below += values.take(lower + 1, mode="clip") * self.right
        return above + (below - above) * self.lower


def footprint(thing: Thing, size: int) -> Footprint | None:
    """The pixels that a thing or its shadow may touch; None where that is none."""
    radius, x, y = thing.radius * size, thing.x * size, thing.y * size
    near, far = radius * 1.12, radius * 1.3
    top, bottom = max(0, int(y - near)), min(size, int(y + far) + 1)
    left, right = max(0, int(x - near)), min(size, int(x + far) + 1)
    if top >= bottom or left >= right:
        return None
    side = next((side for most, side in LEVELS if radius <= most), LEVELS[-1][1])
    step = (side - 1) / (2 * REACH) / radius
    cosine, sine = math.cos(thing.angle) * step, math.sin(thing.angle) * step
    nearest = radius <= LEVELS[-1][0]
    middle = (side - 1) / 2 + (0.5 if nearest else 0.0)
    across = np.arange(left + 0.5 - x, right - x, dtype=np.float32)
    down = np.arange(top + 0.5 - y, bottom - y, dtype=np.float32)[:, None]
    u = across * np.float32(cosine) + (down * np.float32(sine) + np.float32(middle))
    v = across * np.float32(-sine) + (down * np.float32(cosine) + np.float32(middle))
    # A corner may fall off the table: it then reads another edge cell, and all edge cells are alike.
    row = np.floor(v)
    if nearest:
        row *= side
        row += u
        return Footprint(slice(top, bottom), slice(left, right), side, row.astype(np.intp), None, None)
    column = np.floor(u)
    cell = (row * side + column).astype(np.intp)
    return Footprint(slice(top, bottom), slice(left, right), side, cell, u - column, v - row)


def _add(image: np.ndarray, thing: Thing, size: int) -> None:
    place = footprint(thing, size)
    if place is None:
        return
    distance, sunlit = table(thing.shape, place.side)
    cover = place.sample(distance)
    cover *= np.float32(-thing.radius * size)
    cover += np.float32(0.5)
    np.maximum(cover, 0, out=cover)
    np.minimum(cover, 1, out=cover)
    shade = place.sample(surfaces.shade_table(thing.shape, thing.texture, place.side)).astype(np.intp)
    patch = image[:, place.rows, place.columns]
    patch *= place.sample(sunlit)
    paint = surfaces.shades(thing.colour).take(shade, axis=1)
    paint -= patch
    paint *= cover
    patch += paint


def to_pixels(image: np.ndarray) -> np.ndarray:
    """Round float [3, H, W] in 0..255 to uint8 [H, W, 3]."""
    planes = (image + np.float32(0.5)).astype(np.uint8)
    pixels = np.empty((*planes.shape[1:], 3), dtype=np.uint8)
    # Plane by plane is twice as fast as a copy of the transpose.
    for channel in range(3):
        pixels[:, :, channel] = planes[channel]
    return pixels


def masks(scene: Scene, size: int) -> np.ndarray:
    """Visible pixels of every thing, in the order of ``scene.things``: bool [K, size, size], disjoint."""
    result = np.zeros((len(scene.things), size, size), dtype=bool)
    for number in sorted(range(len(scene.things)), key=lambda number: -scene.things[number].depth):
        thing = scene.things[number]
        place = footprint(thing, size)
        if place is None:
            continue
        inside = place.sample(table(thing.shape, place.side)[0]) <= 0
        result[:, place.rows, place.columns] &= ~inside
        result[number, place.rows, place.columns] = inside
    return result


def boxes(visible: np.ndarray) -> np.ndarray:
    """Extents of masks: float32 [K, 4], x0, y0, x1, y1 in pixels, x1 and y1 exclusive; -1 where hidden."""
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
    """The scene with its words, in its style: uint8 [size, size, 3]."""
    image = paint(scene, size)
    words.write(image, scene)
    if scene.style is not None:
        image = styles.apply(scene.style, image, scene.key)
    return to_pixels(image)


def render_batch(scenes: Sequence[Scene], size: int) -> np.ndarray:
    """Many scenes as uint8 [N, size, size, 3], each pixel as ``render`` gives it."""
    return (
        np.stack([render(scene, size) for scene in scenes])
        if scenes
        else np.zeros((0, size, size, 3), np.uint8)
    )
