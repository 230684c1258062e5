import pytest

from clipx.recipes.eval import apart


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_processes_take_the_same_cells_and_set_out_far_from_each_other(number):
    cells = list(range(24))
    orders = [apart(cells, place, number) for place in range(number)]
    assert orders[0] == cells
    assert all(sorted(order) == cells for order in orders)
    assert len({order[0] for order in orders}) == number
    if number == 2:
        assert orders[1] == cells[::-1]
    if number == 4:
        assert [order[:2] for order in orders] == [[0, 1], [11, 10], [12, 13], [23, 22]]
