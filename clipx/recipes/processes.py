"""Other processes of this machine that share a piece of work, and end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

_PATIENCE_SECONDS = 30
"""For a process that was told to stop: it may be writing what is to be kept."""
MOST = 4
"""Processes at most where nobody asked for a number: each holds a model."""


@contextlib.contextmanager
def side_by_side(number: int, work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Within the block other processes call ``work(place, *arguments)``; at its end they are waited for.

    An exception in the block stops them. So does the end of this process, whatever ends it.

    Args:
        number: of processes, 0 or more.
        work: a function of a module, told which of the processes calls it, 1 and up; what it returns is lost.
        arguments: travel to it pickled.
    """
    context = multiprocessing.get_context("spawn")
    # Not daemons: those could not have loader processes.
    others = [
        context.Process(target=_outlived_by_parent, args=(work, (place, *arguments)))
        for place in range(1, number + 1)
    ]
    for other in others:
        other.start()
    try:
        yield
    except BaseException:
        for other in others:
            other.terminate()
        for other in others:
            other.join(_PATIENCE_SECONDS)
            other.kill()
        raise
    finally:
        for other in others:
            other.join()


def _outlived_by_parent(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent tells who must stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    work(*arguments)
