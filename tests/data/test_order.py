import numpy as np
import pytest

from clipx.data.order import Permutation, TrainingOrder, sample_generator


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 255, 256, 257, 1000, 4096, 65537])
def test_a_permutation_is_a_bijection(size):
    for seed, epoch in ((0, 0), (7, 3)):
        images = Permutation(size, seed, epoch)(np.arange(size))
        assert np.array_equal(np.sort(images), np.arange(size))


def test_a_permutation_of_the_largest_data_takes_no_memory():
    positions = np.arange(1000) * 12_345_678
    images = Permutation(2**40 + 1, 0, 0)(positions)
    assert len(np.unique(images)) == 1000
    assert images.min() >= 0
    assert images.max() <= 2**40


def test_positions_are_permuted_independently_of_their_company():
    permutation = Permutation(1000, 1, 2)
    together = permutation(np.arange(1000))
    assert [int(permutation(np.array([i]))[0]) for i in range(0, 1000, 37)] == together[::37].tolist()


def test_seed_and_epoch_make_orders_of_their_own():
    orders = [Permutation(500, *key)(np.arange(500)) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, first in enumerate(orders):
        assert (first == np.arange(500)).mean() < 0.03
        for second in orders[:i]:
            assert (first == second).mean() < 0.03


@pytest.mark.parametrize("size", [5, 10, 50])
def test_every_item_comes_everywhere_and_after_every_other_equally_often(size):
    trials = 3000
    places, follows = np.zeros((size, size)), np.zeros((size, size))
    for seed in range(trials):
        order = Permutation(size, seed, 0)(np.arange(size))
        places[np.arange(size), order] += 1
        np.add.at(follows, (order[:-1], order[1:]), 1)
    following = follows[~np.eye(size, dtype=bool)]
    for counts, degrees in ((places, (size - 1) ** 2), (following, size * (size - 1))):
        expected = counts.mean()
        chi_square = ((counts - expected) ** 2 / expected).sum()
        chi_square *= degrees / counts.size
        assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def stream(size, batch_size, steps, **arguments):
    return [key for batch in TrainingOrder(size, batch_size, 3, steps, **arguments) for key in batch]


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (3, 8), (100, 10), (7, 7), (1, 2)])
def test_each_epoch_holds_every_item_once(size, batch_size):
    steps = 3 * size // batch_size + 3
    keys = stream(size, batch_size, (0, steps))
    for epoch in range(len(keys) // size):
        seen = keys[epoch * size : (epoch + 1) * size]
        assert {e for e, _ in seen} == {epoch}
        assert sorted(index for _, index in seen) == list(range(size))


@pytest.mark.parametrize("size", [5, 10, 64])
def test_a_resumed_run_sees_what_the_whole_one_sees(size):
    whole = list(TrainingOrder(size, 4, 3, (0, 12)))
    assert len(whole) == 12
    for first in (1, 5, 11, 12):
        order = TrainingOrder(size, 4, 3, (first, 12))
        assert list(order) == whole[first:]
        assert len(order) == 12 - first


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_together_see_what_one_sees(world):
    whole = list(TrainingOrder(50, 12, 3, (0, 9)))
    ranks = [list(TrainingOrder(50, 12 // world, 3, (0, 9), rank, world)) for rank in range(world)]
    together = [[key for part in step for key in part] for step in zip(*ranks, strict=True)]
    assert together == whole


def test_every_sample_draws_for_itself():
    def draws(*key):
        return sample_generator(*key).random(64)

    assert np.array_equal(draws(1, 2, 3), draws(1, 2, 3))
    keys = [(1, 2, 3), (1, 2, 4), (1, 2, 5), (1, 3, 3), (2, 2, 3), (1, 2, 3, 1), (1, 2, 3, 2), (1, 2, 2**40)]
    everything = np.concatenate([draws(*key) for key in keys])
    # Not one number in common: neighbours do not read the same stream a few places apart either.
    assert len(np.unique(everything)) == len(everything)
