import pytest

from clipx.probes.sweep import coarse_to_fine, strengths


def test_the_grid_is_that_of_the_clip_paper():
    grid = strengths()
    assert (len(grid), grid[0], grid[-1]) == (97, pytest.approx(1e-6), pytest.approx(1e6))
    assert grid[48] == 1.0
    assert grid[9] / grid[8] == pytest.approx(10**0.125)


@pytest.mark.parametrize("peak", [0, 1, 37, 50, 95, 96])
def test_a_peak_is_found_in_few_looks(peak):
    asked = []

    def quality(place):
        asked.append(place)
        return -abs(place - peak)

    assert coarse_to_fine(97, quality) == peak
    assert len(asked) == len(set(asked)) <= 16
    assert asked[:7] == [0, 16, 32, 48, 64, 80, 96]


def test_of_equals_the_stronger_penalty():
    assert coarse_to_fine(97, lambda place: float(place >= 20)) == 20
    assert coarse_to_fine(5, lambda place: 0.0, 1) == 0
