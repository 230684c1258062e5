"""featurebench: features like those of CLIP by a closed form, to try adapters on in seconds, without a tower.

Images and texts of a class share a direction; images add a modality gap, a class shift that texts do not
know, and noise whose covariance is the same for all classes and far from round. So the zero-shot classifier
is right now and then, a few shots help, and a method that learns the covariance wins when there are many::

    bench = featurebench(shots=16, seed=1)
    adapter.fit(*bench.train, bench.text_classifier, logit_scale=bench.logit_scale)
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.errors import ClipxError, did_you_mean

LOGIT_SCALE = 100.0
_WORLD_SEED = 1234
_PROJECTION_SEED = 99
_JITTER_SEED = 1000
_HIDDEN_SEED = 500


class World(NamedTuple):
    """What the features are drawn from: C classes, D dimensions, and how much of each ingredient there is.

    ``gap`` between the modalities, class ``shift`` of images that texts lack, ``noise``, and the ``decay`` of
    the noise's spectrum (0: round); all 0 or more.
    """

    classes: int = 20
    dims: int = 64
    gap: float = 0.7
    shift: float = 0.8
    noise: float = 5.0
    decay: float = 0.6


PRESETS = {
    "hard": World(),
    "clustered": World(gap=1.0, shift=1.5, noise=2.5),
}
"""``hard``: texts misaligned, noise anisotropic. ``clustered``: classes lie apart, for label-free methods."""

Labelled = tuple[Tensor, Tensor]


class FeatureBench(NamedTuple):
    """One few-shot task: unit rows float32 and labels int64 of three splits, and the zero-shot classifier.

    ``groups`` int64 names the image of every row of ``train``. With a projection, the features are those
    before it: ``[N, Do]``, not of unit length, and ``projection`` is its weight ``[Do, D]``, and no bias.
    """

    train: Labelled
    validation: Labelled
    test: Labelled
    text_classifier: Tensor
    groups: Tensor
    logit_scale: float = LOGIT_SCALE
    projection: tuple[Tensor, None] | None = None


def featurebench(
    world: World | str = "hard",
    *,
    shots: int,
    seed: int,
    validation_shots: int = 4,
    test_per_class: int = 50,
    views: int = 1,
    jitter: float = 0.5,
    pre_projection: bool = False,
) -> FeatureBench:
    """Draw a few-shot task; the world depends on its settings alone, the images on the seed.

    Args:
        world: its settings, or the name of a preset.
        shots: training images a class, 1 or more.
        seed: of the images.
        validation_shots: validation images a class, 0 or more.
        test_per_class: test images a class, 1 or more.
        views: rows a training image; the first is the image itself, the others are jittered.
        jitter: length of the jitter, 0 or more.
        pre_projection: give the features before a projection, 1.5 times as wide; it maps them to those that
            would be given otherwise.

    Raises:
        ClipxError: no such preset, or a number out of range.

    Source: section 8 of the few-shot protocol sheet, whose measured rows are the tests' targets.
    """
    if isinstance(world, str):
        if world not in PRESETS:
            raise ClipxError(f"featurebench has no preset {world!r}", hint=did_you_mean(world, PRESETS))
        world = PRESETS[world]
    for name, value, least in (
        ("shots", shots, 1),
        ("validation_shots", validation_shots, 0),
        ("test_per_class", test_per_class, 1),
        ("views", views, 1),
        ("jitter", jitter, 0),
        ("classes", world.classes, 2),
        ("dims", world.dims, 2),
        *zip(("gap", "shift", "noise", "decay"), world[2:], (0,) * 4, strict=True),
    ):
        if value < least:
            raise ClipxError(f"featurebench: {name} is {value}, must be {least} or more")

    rng = np.random.default_rng(_WORLD_SEED)
    shape = (world.classes, world.dims)
    concept = _unit(rng.standard_normal(shape))
    shift = _unit(rng.standard_normal(shape))
    image_gap = _unit(rng.standard_normal(world.dims))
    text_gap = _unit(rng.standard_normal(world.dims))
    axes = np.linalg.qr(rng.standard_normal((world.dims, world.dims))).Q
    spectrum = (1.0 + np.arange(world.dims)) ** -world.decay
    spectrum /= np.sqrt(np.mean(spectrum**2))
    mixing = axes * spectrum
    centres = world.gap * image_gap + concept + world.shift * shift

    rng = np.random.default_rng(seed)
    splits = []
    for per_class in (shots, validation_shots, test_per_class):
        labels = np.repeat(np.arange(world.classes), per_class)
        noise = rng.standard_normal((len(labels), world.dims)) @ mixing.T
        splits.append((_unit(centres[labels] + world.noise * noise / np.sqrt(world.dims)), labels))
    groups = np.repeat(np.arange(len(splits[0][1])), views)
    splits[0] = (_jittered(splits[0][0], views, jitter, seed), splits[0][1].repeat(views))

    projection = None
    if pre_projection:
        splits, projection = _lifted(splits, world, seed)
    train, validation, test = ((torch.from_numpy(x).float(), torch.from_numpy(y)) for x, y in splits)
    return FeatureBench(
        train,
        validation,
        test,
        torch.from_numpy(_unit(concept + world.gap * text_gap)).float(),
        torch.from_numpy(groups),
        projection=None if projection is None else (torch.from_numpy(projection).float(), None),
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def _jittered(rows: NDArray[np.float64], views: int, jitter: float, seed: int) -> NDArray[np.float64]:
    """``views`` rows for each: itself first, then with noise added, all of unit length."""
    noise = np.random.default_rng(seed + _JITTER_SEED).standard_normal((len(rows), views, rows.shape[1]))
    noise[:, 0] = 0
    moved = _unit(rows[:, None] + jitter * noise / np.sqrt(rows.shape[1]))
    moved[:, 0] = rows
    return moved.reshape(-1, rows.shape[1])


def _lifted(
    splits: list[tuple[NDArray[np.float64], NDArray[np.int64]]], world: World, seed: int
) -> tuple[list[tuple[NDArray[np.float64], NDArray[np.int64]]], NDArray[np.float64]]:
    """Features of half as many dimensions more, which the projection hides: there the classes differ too."""
    hidden = world.dims // 2
    rng = np.random.default_rng(_PROJECTION_SEED)
    basis = np.linalg.qr(rng.standard_normal((world.dims + hidden,) * 2)).Q
    projection, rest = basis[:, : world.dims], basis[:, world.dims :]
    concept = rng.standard_normal((world.classes, hidden))
    rng = np.random.default_rng(seed + _HIDDEN_SEED)
    lifted = []
    for rows, labels in splits:
        extra = concept[labels] + 2 * rng.standard_normal((len(labels), hidden))
        lifted.append((rows @ projection.T + extra / np.sqrt(hidden) @ rest.T, labels))
    return lifted, projection
