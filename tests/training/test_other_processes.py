"""Going on with other processes than those that wrote the checkpoint."""

import json

import fits
import pytest
from fits import batches, new_run, trainer

from clipx.errors import ClipxError
from clipx.run import Run
from clipx.training.loop import steps_between_looks


def stopped(folder, source, change, **settings):
    """The run of a trainer that made two steps; ``change`` is called with what its checkpoint says."""
    run = new_run(folder)
    made = trainer(run, steps=2, **settings)
    made.fit(batches(made, source))
    run.end("interrupted")
    path = made.checkpoints.path(2) / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    return Run.open(run.directory)


def two_ranks(state):
    state["ranks"] = [{**state["ranks"][0], "bad": {str(rank): "gone"}} for rank in range(2)]


def test_a_stream_that_others_read_too_is_not_gone_on_with(tmp_path):
    run = stopped(tmp_path, fits.Stream(), two_ranks)
    with pytest.raises(ClipxError, match=r"had 2 processes .* the order of a stream") as caught:
        trainer(run, steps=2)
    assert "2 processes" in caught.value.hint


def test_batches_of_another_size_are_named(tmp_path):
    run = stopped(tmp_path, fits.Pictures(), lambda state: None)
    with pytest.raises(ClipxError, match="batches of 8 pairs; 1 processes with 4 cannot go on"):
        trainer(run, steps=2, batch_size=4)


def test_what_the_others_passed_over_is_remembered(tmp_path):
    made = trainer(stopped(tmp_path, fits.Pictures(), two_ranks), steps=2)
    assert made.start == 2
    assert made.fitted.bad == {"0": "gone", "1": "gone"}


def test_a_signal_is_looked_for_every_few_seconds_however_long_a_step_takes():
    assert [steps_between_looks(seconds) for seconds in (60, 5, 2, 0.5, 0.01)] == [1, 1, 2, 10, 500]
