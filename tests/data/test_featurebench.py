import numpy as np
import pytest
import torch

from clipx.data.featurebench import PRESETS, World, featurebench
from clipx.errors import ClipxError


def accuracy(bench):
    features, labels = bench.test
    return float(((features @ bench.text_classifier.T).argmax(1) == labels).float().mean())


@pytest.mark.parametrize(("shots", "expected"), [(1, 0.446), (4, 0.461), (16, 0.446)])
def test_zero_shot_is_what_the_sheet_measured(shots, expected):
    mean = np.mean([accuracy(featurebench(shots=shots, seed=seed)) for seed in (1, 2, 3)])
    assert mean == pytest.approx(expected, abs=0.005)


def test_rows_are_unit_and_counted():
    bench = featurebench("clustered", shots=3, seed=1, validation_shots=2, test_per_class=5)
    for (features, labels), each in ((bench.train, 3), (bench.validation, 2), (bench.test, 5)):
        assert labels.bincount().tolist() == [each] * 20
        torch.testing.assert_close(features.norm(dim=1), torch.ones(20 * each))
    torch.testing.assert_close(bench.text_classifier.norm(dim=1), torch.ones(20))


def test_a_seed_gives_the_same_task_and_another_another():
    first, again, other = (featurebench(shots=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.train[0], other.train[0])
    assert torch.equal(first.text_classifier, other.text_classifier)


def test_the_first_view_is_the_image_and_the_rest_of_the_task_stays():
    one, many = (featurebench(shots=2, seed=1, views=views) for views in (1, 5))
    assert torch.equal(one.train[0], many.train[0][::5])
    assert torch.equal(one.test[0], many.test[0])
    assert many.groups.bincount().tolist() == [5] * 40
    assert torch.equal(many.train[1], one.train[1].repeat_interleave(5))
    cosines = (many.train[0].view(40, 5, -1)[:, :1] * many.train[0].view(40, 5, -1)[:, 1:]).sum(-1)
    assert 0.8 < float(cosines.mean()) < 0.95


def test_the_projection_gives_the_features_back():
    plain, lifted = (featurebench(shots=2, seed=1, pre_projection=flag) for flag in (False, True))
    assert lifted.projection[0].shape == (96, 64)
    assert lifted.train[0].shape == (40, 96)
    for name in ("train", "validation", "test"):
        torch.testing.assert_close(getattr(lifted, name)[0] @ lifted.projection[0], getattr(plain, name)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "shots is 0"),
        ({"views": 0}, "views is 0"),
        ({"world": World(classes=1)}, "classes is 1"),
        ({"world": World(noise=-1)}, "noise is -1"),
        ({"world": "hrad"}, "no preset 'hrad'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ClipxError, match=message):
        featurebench(**{"shots": 1, "seed": 1, **settings})


def test_presets_are_worlds():
    assert all(isinstance(world, World) for world in PRESETS.values())
