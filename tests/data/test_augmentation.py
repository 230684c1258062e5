import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from clipx.data.augmentation import MEAN, STD, Erasing, seeded_from
from clipx.data.transforms import TrainTransform, to_tensor
from clipx.errors import ClipxError

PUBLISHED = "rand-m9-mstd0.5-inc1"
WHOLE = {"scale": (1.0, 1.0)}


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def drawn(transform, picture, count=40):
    return [transform(picture, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("options", [{"rand_augment": PUBLISHED}, {"erase": 1.0}])
def test_an_image_is_a_function_of_its_generator_whatever_was_drawn_elsewhere(picture, options):
    transform = TrainTransform(32, **WHOLE, **options)
    first = drawn(transform, picture)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    again = drawn(pickle.loads(pickle.dumps(transform)), picture)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    plain = to_tensor(picture)
    changed = sum(not torch.equal(each, plain) for each in first)
    assert changed > 20
    assert len({each.numpy().tobytes() for each in first}) > 20
    assert all(each.dtype == torch.uint8 and each.shape == (3, 32, 32) for each in first)


def test_off_by_default_and_then_nothing_is_drawn(picture):
    generators = [np.random.default_rng(3) for _ in range(2)]
    plain, off = TrainTransform(32), TrainTransform(32, rand_augment=None, erase=0.0)
    assert torch.equal(plain(picture, generators[0]), off(picture, generators[1]))
    changed = TrainTransform(32, rand_augment=PUBLISHED)
    changed(picture, other := np.random.default_rng(3))
    assert generators[0].random() == generators[1].random()
    assert other.random() != np.random.default_rng(3).random()


def test_other_generators_go_on_as_if_nothing_had_been_drawn():
    def numbers():
        return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002

    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = numbers()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    with seeded_from(np.random.default_rng(0)):
        inside = numbers()
    assert numbers() == expected
    with seeded_from(np.random.default_rng(0)):
        assert numbers() == inside


def test_erasing_puts_noise_of_a_normalised_image_into_a_rectangle():
    image, erase = torch.full((3, 64, 64), 7, dtype=torch.uint8), Erasing(1.0, MEAN, STD)
    noise = []
    for seed in range(30):
        with seeded_from(np.random.default_rng(seed)):
            found = erase(image)
        mask = (found != image).any(0)
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = found[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert 0.01 < box[0].numel() / 64**2 < 0.37
        assert mask.sum() > 0.99 * box[0].numel()
        noise.append(box.flatten(1).float() / 255)
    every = torch.cat(noise, dim=1)
    torch.testing.assert_close(every.mean(1), torch.tensor(MEAN), atol=0.02, rtol=0)
    assert (every.std(1) / torch.tensor(STD)).sub(0.93).abs().max() < 0.05  # a little less: it is cut
    assert torch.equal(image, torch.full((3, 64, 64), 7, dtype=torch.uint8))


def test_erasing_happens_as_often_as_asked(picture):
    plain = to_tensor(picture)
    found = drawn(TrainTransform(32, **WHOLE, erase=0.25), picture, 400)
    assert sum(not torch.equal(each, plain) for each in found) / 400 == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize(
    "options", [{"erase": 1.5}, {"rand_augment": "augmix-m5"}, {"rand_augment": "rand-q3"}]
)
def test_impossible_augmentations_are_named(options):
    with pytest.raises(ClipxError, match=next(iter(options))):
        TrainTransform(32, **options)
