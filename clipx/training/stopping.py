"""Stop cleanly: a signal asks, the loop finishes its step."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch

from clipx import console
from clipx.run import Interrupted
from clipx.training.distributed import world

_NOTE = b"stopping after this step; Ctrl-C stops at once\n"


class StopSignal:
    """Within the block, SIGINT and SIGTERM are noted; a SIGINT after that interrupts at once.

    Outside of the main thread, where Python cannot catch signals, nothing is noted.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._eager = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None and not console.quiet() and world()[0] == 0:
            # A handler may run in the middle of a print, where another print is an error.
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _NOTE)
        self.received = number
        if self._eager:
            raise Interrupted(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal raises Interrupted; one that was noted before does so at its start."""
        self._eager = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        except Exception as error:
            if self.received is None:
                raise
            # It struck inside a library that made another exception of it.
            raise Interrupted(self.received) from error
        finally:
            self._eager = False

    def agreed(self, device: torch.device) -> int | None:
        """The signal that any process received, so that all stop after the same step; collective."""
        if world()[1] == 1:
            return self.received
        number = torch.tensor(self.received or 0, device=device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number) or None
