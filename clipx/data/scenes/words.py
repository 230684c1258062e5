"""Words written into a scene, in a bitmap font of three by five dots: typographic attacks, text in images."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from clipx.data.scenes.draws import Draws
from clipx.data.scenes.world import Scene

GLYPHS = {
    "A": "010101111101101",
    "B": "110101110101110",
    "C": "011100100100011",
    "D": "110101101101110",
    "E": "111100110100111",
    "F": "111100110100100",
    "G": "011100101101011",
    "H": "101101111101101",
    "I": "111010010010111",
    "J": "001001001101010",
    "K": "101101110101101",
    "L": "100100100100111",
    "M": "101111111101101",
    "N": "110101101101101",
    "O": "010101101101010",
    "P": "110101110100100",
    "Q": "010101101111011",
    "R": "110101110101101",
    "S": "011100010001110",
    "T": "111010010010010",
    "U": "101101101101111",
    "V": "101101101101010",
    "W": "101101111111101",
    "X": "101101010101101",
    "Y": "101101010010010",
    "Z": "111001010100111",
}
"""Rows of three dots, top to bottom."""

LINE = 6
"""Dots from one line to the next."""
PAPER, INK = 252.0, 22.0
STEPS = 5
"""Places from the left to the right edge where words may stand."""


@cache
def lettering(words: str) -> np.ndarray:
    """The dots of words, one word a line, centred: bool [lines * 6 - 1, longest line * 4 - 1].

    Raises:
        KeyError: a letter that the font lacks; it has A to Z, written in capitals.
    """
    lines = words.upper().split()
    width = max(len(line) for line in lines) * 4 - 1
    dots = np.zeros((len(lines) * LINE - 1, width), dtype=bool)
    for number, line in enumerate(lines):
        start = (width - (len(line) * 4 - 1)) // 2
        for position, letter in enumerate(line):
            glyph = np.array([dot == "1" for dot in GLYPHS[letter]]).reshape(5, 3)
            left = start + position * 4
            dots[number * LINE : number * LINE + 5, left : left + 3] = glyph
    return dots


def absent_class(scene: Scene, classes: Sequence[tuple[str, str]], draws: Draws) -> tuple[str, str]:
    """A (colour, shape) that is not in the scene, sharing neither with any thing where possible."""
    shown = {(thing.colour, thing.shape) for thing in scene.things}
    colours, shapes = {colour for colour, _ in shown}, {shape for _, shape in shown}
    absent = [kind for kind in classes if kind not in shown]
    wrong = [kind for kind in absent if kind[0] not in colours and kind[1] not in shapes]
    return draws.choice(wrong or absent or classes)


def write(image: np.ndarray, scene: Scene) -> None:
    """Write the scene's words into float32 [3, H, W] in place: light with a dark rim, one a line.

    They stand at the top or the bottom, where they hide least of the things.
    """
    if scene.words is None:
        return
    size = image.shape[1]
    dots = lettering(scene.words)
    # As large as the image allows up to a dot every 48th of it, with one dot of rim around.
    scale = max(1, min(round(size / 48), size // (dots.shape[1] + 2), size // (dots.shape[0] + 2)))
    ink = np.pad(np.kron(dots, np.ones((scale, scale), dtype=bool)), scale)
    rim = np.zeros_like(ink)
    for down, right in ((0, scale), (0, -scale), (scale, 0), (-scale, 0), (scale, scale)):
        rim |= np.roll(ink, (down, right), axis=(0, 1))
    height, width = min(ink.shape[0], size), min(ink.shape[1], size)
    ink, rim = ink[:height, :width], rim[:height, :width]
    top, left = _clearest(scene, height, width, size)
    patch = image[:, top : top + height, left : left + width]
    patch[:, rim] = INK
    patch[:, ink] = PAPER


def _clearest(scene: Scene, height: int, width: int, size: int) -> tuple[int, int]:
    """Top and left of the place at the upper or lower edge that hides least; the scene's key breaks ties."""
    turn = scene.key % STEPS
    places = [
        (top, round((step + turn) % STEPS / (STEPS - 1) * (size - width)))
        for step in range(STEPS)
        for top in ((0, size - height) if scene.key & 64 else (size - height, 0))
    ]
    return min(places, key=lambda place: _hidden(scene, place[0], place[1], height, width, size))


def _hidden(scene: Scene, top: int, left: int, height: int, width: int, size: int) -> float:
    """Area, in pixels, that a rectangle shares with the squares around things."""
    total = 0.0
    for thing in scene.things:
        x, y, reach = thing.x * size, thing.y * size, 0.85 * thing.radius * size
        across = min(x + reach, left + width) - max(x - reach, left)
        down = min(y + reach, top + height) - max(y - reach, top)
        total += max(across, 0.0) * max(down, 0.0)
    return total
