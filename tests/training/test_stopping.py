import os
import signal
import threading

import pytest
import torch

from clipx import console
from clipx.training.stopping import StopSignal

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.agreed(CPU) is None
        os.kill(os.getpid(), number)
        assert stop.agreed(CPU) == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_a_signal_interrupts_at_once(first):
    with StopSignal():
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_changes_nothing():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received == signal.SIGTERM


def test_the_user_is_told_once_unless_quiet(capfd):
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "stopping after this step; Ctrl-C stops at once\n"
    console.configure(quiet=True)
    try:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        console.configure(quiet=False)
    assert capfd.readouterr().err == ""


def test_in_a_thread_nothing_is_caught():
    found = []

    def work():
        with StopSignal() as stop:
            found.append(stop.agreed(CPU))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
