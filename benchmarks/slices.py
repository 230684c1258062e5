"""Share a machine between training programs in turns, so that its noise falls on all of them alike.

Every contender is started once and stopped (SIGSTOP) with its loader processes. In a round each one runs
alone for a slice of time; its queues of batches stand still in between, so no contender begins a slice with
more data ready than it would have had without the pause. A contender leaves a time stamp for every batch its
training loop receives; the distance of two stamps inside one slice is whole steps of work.
"""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_STAMP = struct.Struct("d")


class Stamped:
    """A loader that writes a time stamp whenever its loop receives a batch; otherwise the loader."""

    def __init__(self, loader: Any, path: str | os.PathLike[str]) -> None:
        self.loader = loader
        self.path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for batch in self.loader:
            os.write(descriptor, _STAMP.pack(time.monotonic()))
            yield batch


def stamps_in(path: Path) -> list[float]:
    """The stamps of a file; none where it does not exist yet."""
    content = path.read_bytes() if path.exists() else b""
    return [value for (value,) in _STAMP.iter_unpack(content[: len(content) // 8 * 8])]


class Contender:
    """A training program in a process group of its own, which runs only inside ``turn``.

    Args:
        name: in the table.
        command: a program that stamps into the file named in ``STAMPS``.
        folder: for its stamps and its output.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.rates: list[float] = []
        self._stamps = folder / "stamps"
        self._log = folder / "log.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "STAMPS": str(self._stamps)},
            )

    def stamps(self) -> list[float]:
        """Seconds of the machine's clock at which batches were received so far."""
        return stamps_in(self._stamps)

    def warm_up(self, steps: int, patience: float = 300.0) -> None:
        """Let it start and make its first steps, then pause it.

        Raises:
            SystemExit: it ended, or took longer than ``patience`` seconds.
        """
        until = time.monotonic() + patience
        self._signal(signal.SIGCONT)
        while len(self.stamps()) <= steps:
            if self._process.poll() is not None or time.monotonic() > until:
                sys.exit(f"{self.name} did not train:\n{self._log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        self._signal(signal.SIGSTOP)

    def turn(self, seconds: float) -> list[float]:
        """Run for a slice; returns the stamps inside it.

        Raises:
            SystemExit: it ended before the slice did.
        """
        began = time.monotonic()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        ended = time.monotonic()
        if self._process.poll() is not None:
            sys.exit(f"{self.name} ended early:\n{self._log.read_text(errors='replace')[-3000:]}")
        return [stamp for stamp in self.stamps() if began <= stamp <= ended]

    def end(self) -> None:
        """Kill it and its loader processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, signum: int) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signum)


def interleave(
    contenders: Sequence[Contender], *, rounds: int, seconds: float, batch_size: int, warmup: int
) -> None:
    """Fill ``rates`` of every contender: samples a second, one number a round."""
    for contender in contenders:
        contender.warm_up(warmup)
    for number in range(rounds):
        turn = number % len(contenders)  # nobody always follows the same neighbour
        for contender in [*contenders[turn:], *contenders[:turn]]:
            stamps = contender.turn(seconds)
            while len(stamps) < 3:  # a slice has to hold whole steps
                seconds *= 2
                stamps = contender.turn(seconds)
            contender.rates.append((len(stamps) - 1) * batch_size / (stamps[-1] - stamps[0]))
