import pytest
import torch

from clipx.errors import ClipxError
from clipx.models.interpolation import fisher_average, interpolate


def state(*values, dtype=torch.float64):
    return {"w": torch.tensor(values, dtype=dtype)}


FIRST, SECOND = state(1, 2, 3), state(3, 0, 3)


def test_the_cases_of_the_official_code():
    assert interpolate(FIRST, SECOND, 0.25)["w"].tolist() == [1.5, 1.5, 3.0]
    fishers = state(1, 1, 0), state(3, 0, 0)
    found = fisher_average(FIRST, SECOND, 0.5, fishers, floor=1e-8)["w"]
    assert found.tolist() == pytest.approx([2.5, 2.0, 3.0], abs=1e-7)


def test_missing_information_counts_as_ones():
    found = fisher_average(FIRST, SECOND, 0.5, ({}, state(3, 1, 1)))["w"]
    assert found.tolist() == pytest.approx([2.5, 1.0, 3.0])
    assert torch.equal(
        fisher_average(FIRST, SECOND, 0.25, ({}, {}))["w"], interpolate(FIRST, SECOND, 0.25)["w"]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_are_the_models_themselves(dtype):
    first, second = ({"w": torch.randn(50).to(dtype)} for _ in range(2))
    assert torch.equal(interpolate(first, second, 0)["w"], first["w"])
    assert torch.equal(interpolate(first, second, 1)["w"], second["w"])
    assert interpolate(first, second, 0.5)["w"].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_ends_of_fisher_averaging_are_the_models_themselves(dtype):
    first, second, *fishers = ({"w": torch.randn(50)} for _ in range(4))
    first, second = ({"w": each["w"].to(dtype)} for each in (first, second))
    fishers = tuple({"w": 1e-6 * each["w"].square()} for each in fishers)
    assert torch.equal(fisher_average(first, second, 0, fishers)["w"], first["w"])
    assert torch.equal(fisher_average(first, second, 1, fishers)["w"], second["w"])
    assert fisher_average(first, second, 0.5, fishers)["w"].dtype == dtype


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_a_floor_that_leaves_a_weight_without_a_value(floor):
    with pytest.raises(ClipxError, match="must be above 0"):
        fisher_average(FIRST, SECOND, 0.5, ({}, {}), floor=floor)


def test_half_precision_is_mixed_in_full():
    first, second = state(2048, dtype=torch.float16), state(2050, dtype=torch.float16)
    expected = torch.tensor(0.7 * 2048 + 0.3 * 2050).half()
    assert interpolate(first, second, 0.3)["w"].item() == expected.item()


def test_whole_numbers_are_not_mixed():
    first, second = ({"count": torch.tensor(value)} for value in (10, 21))
    assert interpolate(first, second, 0.5)["count"].item() == 21


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("mix", [interpolate, lambda a, b, alpha: fisher_average(a, b, alpha, ({}, {}))])
def test_alpha_outside_of_its_range(mix, alpha):
    with pytest.raises(ClipxError, match="alpha="):
        mix(FIRST, SECOND, alpha)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"v": torch.ones(3)}, "only one has 'w'"), (state(1, 2), r"'w' is \[3\] in one and \[2\]")],
)
def test_another_architecture(other, said):
    with pytest.raises(ClipxError, match=said):
        interpolate(FIRST, other, 0.5)
