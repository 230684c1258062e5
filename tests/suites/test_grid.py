"""Grids: what is an axis, what replaces what, and values that survive the way through an override."""

import pytest

from clipx.errors import ClipxError
from clipx.suites.grid import Grid, grid_of, override_text
from clipx.suites.grid import _parsed as read_back

DEFAULTS = {"data.objects": [1, 2], "limit": None, "shots": 16, "adapter.alpha": 1.0, "seed": [1, 2, 3]}


def grid(arguments, axes=None, fixed=None):
    return grid_of(axes or {}, fixed or {}, arguments, DEFAULTS.get)


@pytest.mark.parametrize("text", ["shots=1,4", "shots=[1,4]", "shots=[1, 4, 1]"])
def test_several_values_are_an_axis(text):
    assert grid([text]) == Grid({"shots": (1, 4)})


def test_a_range_is_an_axis():
    assert grid(["seed=range(1,4)"]).axes == {"seed": (1, 2, 3)}


def test_a_list_is_one_value_where_a_list_is_what_the_key_takes():
    assert grid(["data.objects=[1,5]"]) == Grid({}, ("data.objects=[1,5]",))
    assert grid(["data.objects=[1,5],[2,2]"]).axes == {"data.objects": ([1, 5], [2, 2])}


def test_a_seed_is_an_axis_although_its_default_is_a_list():
    assert grid(["seed=[1,2]"]).axes == {"seed": (1, 2)}


def test_a_list_for_a_key_without_a_default_must_say_what_it_is():
    with pytest.raises(ClipxError, match="could be one value or several") as caught:
        grid(["limit=[10,20]"])
    assert caught.value.hint == "several: limit=10,20; one: limit=[[10,20]]"
    assert grid(["limit=10,20"]).axes == {"limit": (10, 20)}
    assert grid(["limit=[[10,20]]"]).axes == {"limit": ([10, 20],)}


def test_the_command_line_replaces_axes_and_fixed_values():
    suite = {"method": "all", "shots": [1, 2, 4], "seed": [1, 2]}
    found = grid(["shots=4", "adapter.alpha=2.0", "limit=5", "+x=1"], suite, {"limit": 50, "val": "none"})
    assert found.axes == {"method": ("all",), "shots": (4,), "seed": (1, 2)}
    assert found.fixed == ("limit=5", "val=none", "adapter.alpha=2.0", "+x=1")
    assert grid(["limit=5,6"], suite, {"limit": 50}).fixed == ()


def test_an_axis_without_values_is_refused():
    with pytest.raises(ClipxError, match=r"shots=\[\] leaves nothing to run"):
        grid(["shots=[]"])
    with pytest.raises(ClipxError, match="method="):
        grid([], {"method": []})


def test_points_are_all_combinations_the_last_axis_fastest():
    points = Grid({"a": (1, 2), "b": ("x", "y")}).points()
    assert points == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert Grid().points() == [{}]


VALUES = [
    None, True, 0, -2, 0.5, 1e-5, "a", "a b", "it's", "x\\", "a\\'b", "null", "1", "1e-3", "/a/b", "~/x",
    "a,b", "[x]", "", ["a b", 1], {"k": "v w"}, "hf-hub:org/x", "$x", "ü",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_from_its_override(value):
    found = read_back(override_text(value))
    assert found == value
    assert type(found) is type(value)
