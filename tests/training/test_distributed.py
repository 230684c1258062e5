import pytest
import torch

from clipx.errors import ClipxError
from clipx.training.distributed import check_equal_rows, exchange, foreign_rows, gather_rows, world


def test_one_process_exchanges_nothing():
    rows = torch.ones(3, 2)
    assert world() == (0, 1)
    assert gather_rows(rows) is rows
    assert list(foreign_rows(rows)) == []
    assert exchange((rows,), (1,)) == (rows,)
    check_equal_rows(rows)


def test_an_unknown_exchange_is_named():
    with pytest.raises(ClipxError, match="'bidi'") as caught:
        list(foreign_rows(torch.ones(3, 2), "bidi"))
    assert "bidir" in caught.value.hint


@pytest.mark.parametrize("collective", [gather_rows, check_equal_rows, lambda rows: list(foreign_rows(rows))])
def test_several_launched_processes_need_a_group(monkeypatch, collective):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ClipxError, match="no process group"):
        collective(torch.ones(3, 2))


def test_rows_are_gathered_in_rank_order(processes):
    size = len(processes)
    for rank, found in enumerate(processes):
        assert found["world"] == (rank, size)
        assert found["gathered"][:, 0].tolist() == [float(r) for r in range(size) for _ in range(3)]


@pytest.mark.parametrize("how", ["bidir", "shift", "reduce", "gather"])
def test_every_other_process_is_met_once(processes, how):
    for rank, found in enumerate(processes):
        blocks = found[f"foreign {how}"]
        assert all(block.shape == (3, 2) and block.unique().numel() == 1 for block in blocks)
        met = sorted(int(block[0, 0]) for block in blocks)
        assert met == [other for other in range(len(processes)) if other != rank]


def test_the_gradient_of_an_exchange_takes_the_way_back(processes):
    size = len(processes)
    for rank, found in enumerate(processes):
        left, right = (rank - 1) % size, (rank + 1) % size
        from_left, from_right = found["exchange"]["values"]
        assert torch.equal(from_left, torch.full((2, 3), float(left)))
        assert torch.equal(from_right, torch.full((4,), 10.0 + right, dtype=torch.float64))
        sent_right, sent_left = found["exchange"]["gradients"]
        assert torch.equal(sent_right, torch.full((2, 3), right + 1.0))
        assert torch.equal(sent_left, torch.full((4,), left + 100.0, dtype=torch.float64))


def test_unequal_batches_are_refused_by_every_process(processes):
    counts = [3] + [2] * (len(processes) - 1)
    for found in processes:
        assert len(found["unequal"]) == 5
        assert all(str(counts) in message for message in found["unequal"])
