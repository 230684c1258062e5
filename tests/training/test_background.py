import errno
import threading

import pytest
import torch

from clipx.training.background import CannotWrite, CheckpointWriter, host_copy
from clipx.training.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=3)


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until this event is set."""
    event, write = threading.Event(), Checkpoints.save

    def held(self, step, *rest):
        assert event.wait(30)
        return write(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", held)
    yield event
    event.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_touch_it(checkpoints, gate):
    weight, momentum = torch.ones(3), torch.ones(2)
    with CheckpointWriter(checkpoints) as writer:
        writer.write(1, {"weight": weight}, {"optimizer": {"state": [momentum]}}, {"best": 0.5})
        assert checkpoints.steps() == []
        weight += 1
        momentum.zero_()
        gate.set()
    step, tensors, training, state = checkpoints.newest()
    assert step == 1
    assert tensors["weight"].tolist() == [1, 1, 1]
    assert training["optimizer"]["state"][0].tolist() == [1, 1]
    assert state["best"] == 0.5


def test_one_at_a_time_and_in_order(checkpoints, gate):
    writer = CheckpointWriter(checkpoints)
    writer.write(1, {"weight": torch.zeros(1)}, {}, {})
    second = threading.Thread(target=writer.write, args=(2, {"weight": torch.ones(1)}, {}, {}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    gate.set()
    second.join(30)
    writer.wait()
    assert [checkpoints.load(step).tensors["weight"].item() for step in checkpoints.steps()] == [0, 1]


@pytest.mark.parametrize("ask", ["wait", "check", "write", "write_now", "leave"])
def test_a_failure_is_told_once_by_the_next_who_asks(checkpoints, monkeypatch, ask):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        writer.write(7, {}, {}, {})
        writer._thread.join()
    calls = {
        "wait": writer.wait,
        "check": writer.check,
        "write": lambda: writer.write(8, {}, {}, {}),
        "write_now": lambda: writer.write_now(8, {}, {}, {}),
        "leave": lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(CannotWrite, match="step 7: No space left on device") as caught:
        calls[ask]()
    assert caught.value.error.errno == errno.ENOSPC
    calls[ask]()


def test_what_ended_the_training_is_told_rather_than_a_failed_checkpoint(checkpoints, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)

    def train():
        with CheckpointWriter(checkpoints) as writer:
            writer.write(1, {}, {}, {})
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        train()


def test_a_mistake_of_the_program_is_not_swallowed(checkpoints):
    writer = CheckpointWriter(checkpoints)
    writer.write(1, {}, {}, {"best": object()})
    with pytest.raises(TypeError, match="JSON"):
        writer.wait()


def test_a_copy_shares_nothing_and_its_memory_is_used_again():
    strided = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    value = {"a": [torch.ones(2), (torch.zeros(3, dtype=torch.int64), "text")], "b": strided, "c": 3}
    first = host_copy(value)
    value["a"][0] += 1
    assert first["a"][0].tolist() == [1, 1]
    assert first["b"].stride() == strided.stride()
    assert isinstance(first["a"][1], tuple)
    assert first["a"][1][1] == "text"
    again = host_copy(value, first)
    assert again["a"][0].data_ptr() == first["a"][0].data_ptr()
    assert again["a"][0].tolist() == [2, 2]
    other = host_copy({"a": [torch.ones(5)], "d": torch.ones(1, requires_grad=True)}, first)
    assert other["a"][0].tolist() == [1] * 5
    assert not other["d"].requires_grad
    assert "b" not in other
