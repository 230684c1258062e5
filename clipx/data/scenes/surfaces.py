"""Surfaces: the shades of a colour, the textures of things, and the fields that vary a background."""

from functools import cache

import numpy as np

from clipx.data.scenes.shapes import grid, light
from clipx.data.scenes.vocabulary import COLOURS

SHADES = 256
DIRECTIONS = 16

DARKEST = {"white": 0.80, "black": 0.55, "yellow": 0.74, "brown": 0.74}
"""Darkest shade as a share of the base colour where the usual one would read as another colour."""

BRIGHTEST = {"black": 0.26, "brown": 0.22, "red": 0.26, "gray": 0.26, "orange": 0.34, "purple": 0.28}
"""How far the brightest shade goes towards white where the usual way would read as another colour."""


@cache
def shades(colour: str) -> np.ndarray:
    """A colour from its shadow to its highlight, base in the middle: [3, SHADES], 0..255."""
    base = np.array(COLOURS[colour], dtype=np.float32)
    level = np.linspace(-1, 1, SHADES, dtype=np.float32)[:, None]
    dark, bright = DARKEST.get(colour, 0.60), BRIGHTEST.get(colour, 0.38)
    below, above = base * (1 + level * (1 - dark)), base + (255 - base) * level * bright
    return np.ascontiguousarray(np.where(level < 0, below, above).T, dtype=np.float32)


def texture(name: str, side: int) -> np.ndarray:
    """What a texture adds to the light of a thing, over ``shapes.grid(side)``: float [side, side].

    Values are at most 0.3 either way, tone on tone, so that the colour stays the colour.
    """
    x, y = grid(side)
    if name == "solid":
        return np.zeros_like(x)
    if name == "striped":
        wave = np.sin((x + y) * (2 * np.pi / 0.78))
    elif name == "dotted":
        wave = 0.75 - np.cos(x * (2 * np.pi / 0.68)) - np.cos(y * (2 * np.pi / 0.68))
    elif name == "checkered":
        wave = np.sin(x * (np.pi / 0.46)) * np.sin(y * (np.pi / 0.46)) * 2
    else:
        raise ValueError(f"no texture {name!r}")
    return 0.3 * np.clip(wave * 2.2, -1, 1)


@cache
def shade_table(shape: str, name: str, side: int) -> np.ndarray:
    """Which of ``shades`` a shape with a texture shows, over ``shapes.grid(side)``: uint8 [side**2]."""
    level = light(shape, side) + texture(name, side).reshape(-1)
    return np.clip(level * SHADES, 0, SHADES - 1).astype(np.uint8)


@cache
def gradient(size: int, direction: int) -> np.ndarray:
    """A ramp from -1 to 1 across a square in one of ``DIRECTIONS`` directions: float32 [size, size]."""
    angle = 2 * np.pi * direction / DIRECTIONS
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return (ramp / (abs(np.cos(angle)) + abs(np.sin(angle)))).astype(np.float32)


@cache
def noise(size: int) -> np.ndarray:
    """Periodic soft noise to cut backgrounds from, mean 0, about -1..1: float32 [2 * size, 2 * size]."""
    side = 2 * size
    generator = np.random.Generator(np.random.Philox(key=20210105))
    frequency = np.fft.fftfreq(side)[:, None] ** 2 + np.fft.fftfreq(side)[None, :] ** 2
    spectrum = np.fft.fft2(generator.standard_normal((side, side)))
    soft = np.fft.ifft2(spectrum / np.sqrt(frequency + (1.5 / size) ** 2)).real
    fine = generator.standard_normal((side, side))
    field = soft / soft.std() * 0.42 + fine * 0.2
    return np.clip(field, -1.4, 1.4).astype(np.float32)


@cache
def pattern(size: int, number: int) -> np.ndarray:
    """A repeating pattern (weave, dots, waves, tiles) to cut grounds from: float32 [2 * size, 2 * size]."""
    axis = np.arange(2 * size, dtype=np.float32) / size
    x, y = np.meshgrid(axis, axis)
    turn = 2 * np.pi * 8
    if number == 0:
        field = np.sin(turn * x) * 0.5 * (1 + np.sin(turn * y)) + np.sin(turn * y) * 0.5 * (
            1 - np.sin(turn * x)
        )
    elif number == 1:
        field = np.clip((np.cos(turn * x) + np.cos(turn * y)) * 1.6 - 1.2, -1, 1)
    elif number == 2:
        field = np.sin(turn * (y + 0.02 * np.sin(2 * np.pi * 4 * x)))
    else:
        field = np.sign(np.sin(turn / 2 * x) * np.sin(turn / 2 * y)) * 0.8
    return field.astype(np.float32)


PATTERNS = 4
