"""A signal during a validation: it is broken off, the step is saved, and the resumed run makes up for it."""

import os
import signal
import time

import pytest
from fits import batches, differing, losses, new_run, state, trainer

from clipx.run import Interrupted, Run
from clipx.training.stopping import StopSignal

SETTINGS = {"steps": 6, "evaluate_every": 3, "checkpoint_every": 2, "log_every": 1}


def evaluate(*signals):
    """A validation that takes a minute where a signal comes, at its first call for the first, and so on."""
    scores, waiting = iter([0.2, 0.9, 0.4]), iter(signals)

    def measure(clip):
        if number := next(waiting, None):
            os.kill(os.getpid(), number)
            time.sleep(60)
        return {"top1": next(scores)}

    return measure


def whole(folder):
    made = trainer(new_run(folder), evaluate=evaluate(), **SETTINGS)
    made.fit(batches(made))
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_validation_is_broken_off_and_made_up_for(tmp_path, number):
    undisturbed = whole(tmp_path)
    began = time.monotonic()
    run = new_run(tmp_path)
    made = trainer(run, evaluate=evaluate(number), **SETTINGS)
    with pytest.raises(Interrupted) as caught, run:
        made.fit(batches(made))
    assert time.monotonic() - began < 30
    assert caught.value.signum == number
    assert made.checkpoints.steps() == [2, 3]
    assert "validation/top1" not in losses(run)[-1]

    again = trainer(Run.open(run.directory), evaluate=evaluate(), **SETTINGS)
    assert again.start == 3
    again.fit(batches(again))
    assert differing(state(undisturbed), state(again)) == []
    assert losses(again.run) == losses(undisturbed.run)
    assert again.fitted.best_step == undisturbed.fitted.best_step == 6


def test_one_that_is_broken_off_again_is_still_pending(tmp_path):
    run = new_run(tmp_path)
    for _ in range(2):
        made = trainer(run, evaluate=evaluate(signal.SIGTERM), **SETTINGS)
        with pytest.raises(Interrupted), run:
            made.fit(batches(made))
        run = Run.open(run.directory)
    again = trainer(run, evaluate=evaluate(), **SETTINGS)
    again.fit(batches(again))
    assert losses(again.run) == losses(whole(tmp_path).run)


def test_the_validation_after_the_last_step_is_made_up_for(tmp_path):
    settings = {**SETTINGS, "evaluate_every": None}
    run = new_run(tmp_path)
    made = trainer(run, evaluate=evaluate(signal.SIGTERM), **settings)
    with pytest.raises(Interrupted), run:
        made.fit(batches(made))
    again = trainer(Run.open(run.directory), evaluate=evaluate(), **settings)
    assert again.fit(lambda span, positions: pytest.fail("no data is needed")).evaluation == {"top1": 0.2}
    assert again.checkpoints.best() == 6


def test_what_a_library_makes_of_a_signal_is_that_signal():
    def library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("worker died") from error

    with StopSignal() as stop, pytest.raises(Interrupted), stop.at_once():
        library()


def test_an_error_without_a_signal_is_that_error():
    with StopSignal() as stop, pytest.raises(KeyError), stop.at_once():
        raise KeyError("data")
