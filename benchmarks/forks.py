"""Start clipx many times at the price of one import of torch: every start is a fork of this process.

What is forked has imported torch, open_clip and the recipes, and computed nothing: no thread runs yet. From
there on a start is one of its own: arguments, environment, output, signals, locks, loader processes.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


def prepare(*recipes: str) -> None:
    """Import what the recipes need; before the first start, and before anything is computed."""
    import importlib

    import clipx.commands.recipe  # noqa: F401
    from clipx.config import compose

    for recipe in recipes:
        importlib.import_module(f"clipx.recipes.{recipe}")
        compose(recipe)  # Hydra looks for its plugins once a process


class Start:
    """One ``clipx`` at work in a process of its own.

    Args:
        arguments: behind ``clipx``.
        output: file that stdout and stderr are appended to.
        environment: variables besides those of this process.
    """

    def __init__(
        self, arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        _started.append(self)
        if self.pid == 0:
            _run(arguments, output, environment or {})

    def poll(self) -> int | None:
        """The exit code, -N where signal N ended it; None as long as it works."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> int:
        """The exit code.

        Raises:
            TimeoutError: it works on after so many seconds.
        """
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} has not ended in {seconds:.0f} s")
            time.sleep(0.005)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is still at work."""
        if self.poll() is None:
            os.kill(self.pid, number)


_started: list[Start] = []


def end_all() -> None:
    """Kill what is still at work, as after a failure."""
    for each in _started:
        each.send(signal.SIGKILL)


def launch(processes: int) -> list[dict[str, str]]:
    """The variables by which so many processes of this machine find each other, as torchrun sets them."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(port)}
    common["MASTER_ADDR"] = "127.0.0.1"
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _run(arguments: Sequence[str], output: Path, environment: Mapping[str, str]) -> None:
    """What the child does; never returns."""
    code: object = 1
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.environ.update(environment)
        sys.argv = ["clipx", *arguments]
        from clipx.cli import main

        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
