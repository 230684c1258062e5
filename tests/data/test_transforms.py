import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from clipx.data.transforms import TrainTransform, inference_transform, to_pil, to_tensor
from clipx.errors import BadSample, ClipxError

SIZES = [(1, 1), (1, 200), (200, 1), (7, 5), (32, 32), (33, 31), (640, 480), (500, 20)]
MODES = ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "LA"]


def picture(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (
        Image.fromarray(pixels).convert("L").convert(mode)
        if mode == "I;16"
        else Image.fromarray(pixels).convert(mode)
    )


@pytest.fixture(params=["train", "inference"])
def transform(request):
    if request.param == "train":
        train = TrainTransform(32, flip=0.5)
        return lambda image: train(image, np.random.default_rng(0))
    return inference_transform({"size": 32})


@pytest.mark.parametrize("size", SIZES)
def test_any_size_becomes_the_models_size(transform, size):
    tensor = transform(picture(*size))
    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_becomes_rgb(transform, mode):
    assert transform(picture(40, 30, mode)).shape == (3, 32, 32)


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4)])
def test_arrays_of_bytes_are_images(transform, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert to_pil(pixels).size == (9, 8)
    assert transform(pixels).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "array", [np.zeros((8, 9, 3)), np.zeros((8, 9, 2), np.uint8), np.zeros(4, np.uint8), None]
)
def test_other_arrays_are_bad_samples(transform, array):
    with pytest.raises(BadSample, match="not an image"):
        transform(array)


def test_the_tensor_holds_the_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    tensor = to_tensor(Image.fromarray(pixels))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(inference_transform({"size": (2, 4)})(pixels).permute(1, 2, 0).numpy(), pixels)


def test_the_training_transform_is_a_function_of_its_generator():
    transform, image = TrainTransform(32, scale=(0.2, 1.0), flip=0.5), picture(64, 48)
    first = transform(image, np.random.default_rng(5))
    torch.manual_seed(1)
    np.random.default_rng(9)
    assert torch.equal(transform(image, np.random.default_rng(5)), first)
    assert not torch.equal(transform(image, np.random.default_rng(6)), first)


def test_crops_stay_in_the_image_and_in_their_ranges():
    transform = TrainTransform(32, scale=(0.3, 0.6), ratio=(0.8, 1.25))
    generator = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = transform.box(100, 80, generator)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 80
        areas.append((right - left) * (bottom - top) / 8000)
        ratios.append((right - left) / (bottom - top))
    assert 0.29 < min(areas) < 0.35 < 0.55 < max(areas) < 0.61
    assert 0.78 < min(ratios) < 0.85 < 1.15 < max(ratios) < 1.28


@pytest.mark.parametrize("size", [(300, 20), (20, 300)])
def test_a_long_image_gives_as_much_as_the_ratio_allows(size):
    """As large as the fallback of torchvision's RandomResizedCrop, but not always of the middle."""
    from torchvision.transforms import RandomResizedCrop

    _, _, height, width = RandomResizedCrop.get_params(picture(*size), (0.9, 1.0), (3 / 4, 4 / 3))
    transform, generator = TrainTransform(32, ratio=(3 / 4, 4 / 3)), np.random.default_rng(0)
    boxes = [transform.box(*size, generator) for _ in range(200)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(width, height)}
    starts = [left + top for left, top, _, _ in boxes]
    assert min(starts) < 20
    assert max(starts) > max(size) - max(width, height) - 20


def test_the_default_is_a_square_of_the_whole_height_anywhere():
    transform, generator = TrainTransform(32), np.random.default_rng(0)
    boxes = [transform.box(160, 120, generator) for _ in range(100)]
    assert {(right - left, top, bottom) for left, top, right, bottom in boxes} == {(120, 0, 120)}
    assert len({left for left, *_ in boxes}) > 20
    sides = [right - left for left, _, right, _ in (transform.box(100, 100, generator) for _ in range(100))]
    assert min(sides) == 95
    assert max(sides) == 100


def test_a_mirror_is_a_mirror():
    image = picture(32, 32)
    mirrored = TrainTransform(32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)(
        image, np.random.default_rng(0)
    )
    assert torch.equal(mirrored, to_tensor(image).flip(2))
    never = TrainTransform(32, scale=(1.0, 1.0), ratio=(1.0, 1.0))(image, np.random.default_rng(0))
    assert torch.equal(never, to_tensor(image))


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 1.2)},
        {"scale": (0.9, 0.5)},
        {"ratio": (0.0, 1.0)},
        {"flip": 1.5},
        {"interpolation": "cubic"},
    ],
)
def test_impossible_arguments_are_named(arguments):
    with pytest.raises(ClipxError, match=next(iter(arguments))):
        TrainTransform(32, **arguments)


def test_transforms_travel_to_spawned_processes():
    image = picture(50, 40)
    for transform in (inference_transform({"size": 32}), TrainTransform(32)):
        again = pickle.loads(pickle.dumps(transform))
        arguments = () if not isinstance(transform, TrainTransform) else (np.random.default_rng(0),)
        more = () if not arguments else (np.random.default_rng(0),)
        assert torch.equal(again(image, *arguments), transform(image, *more))
