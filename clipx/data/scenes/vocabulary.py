"""What a scene may hold: shapes, colours, sizes, textures, backgrounds, relations, by their English names."""

from collections.abc import Mapping
from functools import cache

import numpy as np

SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "diamond",
    "crescent",
    "hexagon",
    "arrow",
    "drop",
)

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (216, 34, 38),
    "green": (40, 158, 62),
    "blue": (38, 82, 218),
    "yellow": (248, 212, 32),
    "orange": (246, 128, 22),
    "purple": (128, 44, 176),
    "pink": (250, 132, 188),
    "brown": (122, 70, 32),
    "black": (26, 26, 30),
    "white": (250, 250, 248),
    "gray": (134, 138, 142),
    "cyan": (40, 202, 222),
}
"""Base colour of every name, sRGB 0..255."""

TEXTURES = ("solid", "striped", "dotted", "checkered")

SIZES = ("small", "medium", "large")

DIAMETERS: Mapping[int, tuple[tuple[float, float], ...]] = {
    1: ((0.32, 0.40), (0.47, 0.56), (0.64, 0.75)),
    2: ((0.26, 0.30), (0.34, 0.38), (0.42, 0.47)),
    3: ((0.24, 0.27), (0.30, 0.33), (0.36, 0.40)),
    4: ((0.22, 0.24), (0.27, 0.29), (0.32, 0.35)),
    5: ((0.20, 0.22), (0.245, 0.265), (0.29, 0.31)),
}
"""Object diameter as a fraction of the image, by number of objects, then by size (small, medium, large)."""

MOST_OBJECTS = max(DIAMETERS)

BACKGROUNDS = ("plain", "gradient", "noise", "textured")

TONES = ("light", "middle", "dark")

TINTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "gray": ((226, 227, 229), (160, 162, 166), (62, 64, 70)),
    "blue": ((208, 224, 244), (136, 160, 196), (40, 54, 92)),
    "green": ((212, 234, 212), (140, 174, 140), (36, 68, 50)),
    "yellow": ((246, 238, 206), (196, 184, 128), (84, 76, 34)),
    "red": ((246, 218, 216), (192, 138, 138), (88, 36, 42)),
    "purple": ((228, 218, 242), (158, 142, 184), (60, 44, 84)),
    "brown": ((236, 224, 210), (174, 154, 132), (70, 54, 42)),
}
"""Background colour by tint, then by tone (light, middle, dark), sRGB: muted, so that objects stand out."""

OPPOSITE: Mapping[str, str] = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "front": "behind",
    "behind": "front",
}
"""Every relation and the one that holds when its two objects change places."""

CAPTIONS = ("short", "long", "paraphrase", "object", "partial")
"""What a caption says: what is there, everything, the same in other words; one caption an object with all its
attributes; one object with one to four of its attributes, few more often than many."""


@cache
def contrast(colour: str, tint: str, tone: int) -> float:
    """Perceptual distance (CIE76, CIELAB) of an object colour and a background, 0..~120."""
    return float(np.linalg.norm(lab(COLOURS[colour]) - lab(TINTS[tint][tone])))


def lab(rgb: tuple[int, int, int]) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour 0..255: float64 [3]. Source: CIE 15:2004."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
