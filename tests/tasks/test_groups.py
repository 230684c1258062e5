import pytest
import torch

from clipx.errors import ClipxError
from clipx.tasks.groups import group_accuracy, per_group
from clipx.tasks.intervals import proportion

CORRECT = torch.tensor([1, 1, 1, 0, 1, 0, 0, 1, 1]).bool()
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 3, -1])


def test_by_hand():
    found = group_accuracy(CORRECT, GROUPS)
    assert found["worst_group"] == proportion(1, 3)
    assert found["mean_group"].value == pytest.approx((3 / 4 + 1 / 3 + 1) / 3)
    assert found["group_gap"].value == pytest.approx(1 - 1 / 3)
    assert all(each.low <= each.value <= each.high for each in found.values())


def test_the_gap_is_newcombes_interval():
    """Newcombe 1998, table II (a), method 10: 56/70 and 48/80 differ by 0.2, from 0.0524 to 0.3339."""
    correct = [True] * 56 + [False] * 14 + [True] * 48 + [False] * 32
    gap = group_accuracy(correct, [0] * 70 + [1] * 80)["group_gap"]
    assert gap == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_every_group_has_a_row():
    rows = per_group(CORRECT, GROUPS, ["land", "water", "sky", "lab", "spare"])
    assert [(row.name, row.support) for row in rows] == [
        ("land", 4),
        ("water", 3),
        ("sky", 0),
        ("lab", 1),
        ("spare", 0),
    ]
    assert rows[1].accuracy == proportion(1, 3)
    assert rows[2].accuracy is None


@pytest.mark.parametrize(
    ("correct", "groups", "message"),
    [([True], [0, 1], "do not match"), ([True], [-2], "count from 0"), ([True], [-1], "no row has a group")],
)
def test_what_cannot_be_measured_is_named(correct, groups, message):
    with pytest.raises(ClipxError, match=message):
        group_accuracy(correct, groups)


def test_a_group_without_a_name():
    with pytest.raises(ClipxError, match="1 names for 2 groups"):
        per_group([True, True], [0, 1], ["a"])
