"""Style domains: the same scene as a noisy photograph, a sketch, inverted, at night, blurred, hidden."""

from collections.abc import Callable

import numpy as np

Style = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with edges repeated: float32 [3, H, W] to the same; sigma in pixels."""
    reach = max(1, int(np.ceil(2.5 * sigma)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (1, 2):
        width = image.shape[axis]
        padded = np.pad(
            image, [(reach, reach) if number == axis else (0, 0) for number in range(3)], mode="edge"
        )
        parts = [tap * padded.take(range(start, start + width), axis=axis) for start, tap in enumerate(taps)]
        image = np.stack(parts).sum(axis=0, dtype=np.float32)
    return image


def photo_noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A cheap camera: slight blur, colour cast, dark corners, sensor noise."""
    size = image.shape[1]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    corners = 1 - 0.22 * (axis[None, :] ** 2 + axis[:, None] ** 2) / 2
    cast = generator.uniform(0.88, 1.08, size=(3, 1, 1)).astype(np.float32)
    grain = generator.standard_normal(image.shape, dtype=np.float32)
    return blurred(image, 0.010 * size + 0.2) * cast * corners + 13 * grain


def sketch(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Coloured pencil on paper: dark outlines, hatching in the colour of what it fills."""
    size = image.shape[1]
    paper = np.array([247, 243, 233], dtype=np.float32)[:, None, None]
    slope_y, slope_x = np.gradient(blurred(image, 0.008 * size + 0.25), axis=(1, 2))
    edge = np.sqrt((slope_x**2 + slope_y**2).sum(axis=0)) * (size / 48)
    line = np.clip((edge - 22) / 60, 0, 1)
    across = np.arange(size, dtype=np.float32)
    phase = generator.uniform(0, 2 * np.pi)
    wave = np.sin((across[None, :] + across[:, None]) * (2 * np.pi / max(4.0, size / 16)) + phase)
    grain = generator.standard_normal((size, size), dtype=np.float32)
    hatch = np.clip(0.60 + 0.17 * wave + 0.05 * grain, 0, 1)
    filled = paper - np.maximum(paper - image, 0) * hatch
    return filled * (1 - 0.8 * line) + 40 * 0.8 * line


def inverted(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Light and dark exchanged while hues stay: black turns white, red stays red."""
    return image + (255 - image.max(axis=0) - image.min(axis=0))


def low_light(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Late evening: a quarter of the light, bluish, with noise."""
    tone = np.array([0.82, 0.92, 1.12], dtype=np.float32)[:, None, None]
    grain = generator.standard_normal(image.shape, dtype=np.float32)
    return 255 * (image / 255) ** 1.2 * 0.32 * tone + 5 + 4.5 * grain


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Out of focus."""
    return blurred(image, image.shape[1] * float(generator.uniform(0.026, 0.044)))


def occlusion(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Behind a fence: slanted bars hide about a quarter of the image."""
    size = image.shape[1]
    angle, period = generator.uniform(0, np.pi), generator.uniform(0.24, 0.36)
    axis = np.arange(size, dtype=np.float32) / size
    along = (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]) / period + generator.uniform()
    distance = np.abs(along - np.round(along)) * period * size
    bar = np.clip(0.12 * period * size - distance + 0.5, 0, 1)
    wood = np.array([118, 112, 104], dtype=np.float32)[:, None, None] * (1.1 - 0.02 * distance * 48 / size)
    return image * (1 - bar) + wood * bar


STYLES: dict[str, Style] = {
    "photo-noise": photo_noise,
    "sketch": sketch,
    "inverted": inverted,
    "low-light": low_light,
    "blur": blur,
    "occlusion": occlusion,
}
"""Every style: float32 [3, H, W] in 0..255 and a generator of its own to an image of the same shape."""


def apply(name: str, image: np.ndarray, key: int) -> np.ndarray:
    """The image in a style: float32 [3, H, W] within 0..255; ``key`` (64 bits) decides its noise."""
    generator = np.random.Generator(np.random.Philox(key=key))
    return np.clip(STYLES[name](image, generator), 0, 255).astype(np.float32)
