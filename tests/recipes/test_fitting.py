"""How many steps, and which part of a batch each process takes."""

import pytest

from clipx.config import compose
from clipx.errors import ClipxError
from clipx.recipes import fitting
from clipx.recipes.fitting import loop_settings


class Photos:
    """Data with an index, of which only the size matters."""

    def __len__(self):
        return 96


class Shards:
    """A stream."""

    size = 96

    def stream(self): ...


def settings(source, began_with, *overrides):
    return loop_settings(compose("pretrain", list(overrides)).training, source, began_with)


@pytest.mark.parametrize(("now", "batch_size"), [(1, 24), (3, 8), (4, 6), (24, 1)])
def test_other_processes_cut_the_same_batches(monkeypatch, capsys, now, batch_size):
    monkeypatch.setattr(fitting, "world", lambda: (0, now))
    found = settings(Photos(), 2, "training.batch_size=12", "training.epochs=3")
    assert (found.batch_size, found.steps) == (batch_size, 12)
    assert (
        f"began with 2 processes and goes on with {now}, of {batch_size} pairs each"
        in capsys.readouterr().err
    )


def test_as_many_processes_as_before_say_nothing(monkeypatch, capsys):
    monkeypatch.setattr(fitting, "world", lambda: (0, 2))
    for began_with in (None, 2):
        found = settings(Photos(), began_with, "training.batch_size=12", "training.epochs=3")
        assert (found.batch_size, found.steps) == (12, 12)
    assert "began" not in capsys.readouterr().err


def test_a_batch_was_no_larger_than_the_data_when_the_run_began(monkeypatch):
    monkeypatch.setattr(fitting, "world", lambda: (0, 3))
    assert settings(Photos(), 2, "training.batch_size=60").batch_size == 32  # 2 of 48, the data has 96


def test_what_is_cached_at_a_time_is_no_more_than_a_batch(monkeypatch):
    monkeypatch.setattr(fitting, "world", lambda: (0, 4))
    cached = ["training.batch_size=12", "training.gradient_cache=8"]
    assert settings(Photos(), 2, *cached).gradient_cache == 6


@pytest.mark.parametrize(
    ("source", "now", "said"),
    [(Photos(), 5, "batches of 24 pairs cannot be cut into 5"), (Shards(), 1, "the order of a stream")],
)
def test_batches_that_cannot_be_the_same_are_refused(monkeypatch, source, now, said):
    monkeypatch.setattr(fitting, "world", lambda: (0, now))
    with pytest.raises(ClipxError, match=f"began with 2 processes, this launch has {now}: {said}") as caught:
        settings(source, 2, "training.batch_size=12")
    assert "--processes 2" in caught.value.hint
