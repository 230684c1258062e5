"""One run: a numbered output directory that is never overwritten and always tells the truth about itself.

    outputs/<command>/<method>/v0001/
        config.yaml  command.txt  environment.json  status.json  metrics.jsonl  results.json
        figures/  checkpoints/  model/

A live run holds a lock on its ``.lock``; the kernel drops it however the process ends. So a status that says
"running" beside a free lock is a run that was killed, and whoever reads it first (``clipx.runs``) puts the
status right.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clipx.console import finite
from clipx.environment import environment
from clipx.errors import ClipxError
from clipx.files import (
    append_line,
    drop_partial_line,
    explained,
    hold,
    json_text,
    let_go,
    read_json,
    write_atomic,
)
from clipx.runs import VERSION, is_run, read_metrics, shown

if TYPE_CHECKING:
    from types import TracebackType

    from omegaconf import DictConfig


class Interrupted(BaseException):
    """A run that stopped early because a signal asked it to; not an Exception, so that nothing swallows it.

    Args:
        signum: the signal; the process exits with 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Busy(ClipxError):
    """Another process is working on the run."""


def output_root(given: str | os.PathLike[str] | None = None) -> Path:
    """Where runs live: what was given, else CLIPX_OUTPUTS, else ./outputs."""
    return Path(given or os.environ.get("CLIPX_OUTPUTS") or "outputs").expanduser().absolute()


def launched() -> int:
    """How many processes this one was started with, by torchrun's variables; 1 for one that is alone."""
    given = os.environ.get("WORLD_SIZE", "")
    return int(given) if given.isdigit() and int(given) else 1


def is_main_process() -> bool:
    """Whether this process is the one of its launch that writes (rank 0, or the only one)."""
    rank = os.environ.get("RANK")
    if rank is None and "MASTER_ADDR" in os.environ:  # a bare `srun` of one distributed program
        rank = os.environ.get("SLURM_PROCID")
    return rank in (None, "", "0")


class Run:
    """One run's directory; a context manager that keeps its status right however the block ends.

    Attributes:
        directory: the run's folder; None in a process that does not write and was not told it.
        resumed: whether this run goes on from an earlier start.
        writes: False in the processes of a launch that share the run without writing; there, writing methods
            do nothing.
        next: commands worth trying after this run; the command line prints them at the end.
    """

    def __init__(self, directory: Path | None, *, resumed: bool = False, writes: bool = True) -> None:
        self.directory = directory
        self.resumed = resumed
        self.writes = writes
        self.next: list[str] = []
        self._lock: IO[bytes] | None = None
        self._clock = time.monotonic()
        self._whole: Run = self

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        command: str,
        method: str,
        config: DictConfig | dict[str, Any],
        *,
        argv: Sequence[str] | None = None,
        overrides: Sequence[str] = (),
        surroundings: dict[str, Any] | None = None,
    ) -> Run:
        """Claim the next version under ``root/command/method`` and write what is known at the start.

        Args:
            root: the output root, made if absent.
            command, method: names that become folders.
            config: the resolved configuration.
            argv: the command line as given; sys.argv by default.
            overrides: what the user changed, kept so that a resume can tell whether it asks for the same.
            surroundings: what ``environment`` gave, of a process that starts many runs; None to look now.

        Raises:
            ClipxError: the folder cannot be written.
        """
        if not is_main_process():
            return cls(None, writes=False)
        family = Path(root).expanduser().absolute() / command / method
        with explained(family):
            family.mkdir(parents=True, exist_ok=True)
            directory = _claim(family)
        run = cls(directory)
        try:
            run._acquire()
            run._write_status({"status": "running", "started": _now(), "ended": None, "seconds": 0.0})
            run._write("config.yaml", _yaml(config))
            run._write("command.txt", _command_line(argv) + "\n")
            found = environment(launched()) if surroundings is None else surroundings
            run._write("environment.json", json_text({**found, "overrides": list(overrides)}))
        except BaseException:
            run.discard()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, argv: Sequence[str] | None = None) -> Run:
        """Take up a run that stopped before its end.

        Raises:
            ClipxError: there is no run at ``path``, it is finished, or another process is working on it.
        """
        directory = Path(path).expanduser().absolute()
        if not is_run(directory):
            raise ClipxError(f"{directory} is not a run", hint="clipx runs lists the runs there are")
        if not is_main_process():
            return cls(directory, resumed=True, writes=False)
        run = cls(directory, resumed=True)
        run._acquire()
        status = read_json(directory / "status.json")
        if status.get("status") == "completed":
            run._release()
            raise ClipxError(
                f"{directory} is finished", hint="start a new run, or give its model to another command"
            )
        run._write_status({**status, "status": "running", "ended": None, "error": None, "resumed": _now()})
        with run._guarded():
            drop_partial_line(directory / "metrics.jsonl")
            with (directory / "command.txt").open("a", encoding="utf-8") as file:
                file.write(_command_line(argv) + "\n")
        return run

    def discard(self) -> None:
        """Take back a run in which nothing was done yet."""
        self._release()
        if self.writes and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def began_with(self) -> int | None:
        """Processes that a resumed run began with; None for a run that begins now, or where nothing says."""
        whole = self._whole.directory
        if whole is None or not self.resumed:
            return None
        known = read_json(whole / "environment.json").get("processes")
        return known if isinstance(known, int) else None

    @property
    def shown(self) -> str:
        """The run's directory as a person at this prompt would name it: relative where it lies below."""
        return shown(self.directory) if self.directory is not None else ""

    def path(self, *parts: str) -> Path:
        """The path of a folder or file of this run; ``path("figures")`` makes the folder.

        A last part with a suffix is a file: only its folder is made.

        Raises:
            RuntimeError: this process was not told the run's directory.
            ClipxError: the folder cannot be made.
        """
        if self.directory is None:
            raise RuntimeError("only the main process knows the run's directory")
        target = self.directory.joinpath(*parts)
        if self.writes:
            with self._guarded():
                (target.parent if target.suffix else target).mkdir(parents=True, exist_ok=True)
        return target

    def part(self, *parts: str) -> Run:
        """A folder of this run with metrics, results and checkpoints of its own, under its status and lock.

        Raises:
            ClipxError: the folder cannot be made.
        """
        if self.directory is None:
            return Run(None, writes=False)
        own = Run(self.path(*parts), resumed=self.resumed, writes=self.writes)
        own._whole = self._whole
        return own

    def log(self, *, step: int, **scalars: Any) -> None:
        """Append one record to metrics.jsonl, with one write, so that a reader never sees half of it."""
        if not self.writes:
            return
        record = finite({"step": int(step), **{name: _scalar(value) for name, value in scalars.items()}})
        with self._guarded():
            append_line(self._file("metrics.jsonl"), json.dumps(record, ensure_ascii=False))

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, oldest first; a line cut off by a crash is left out."""
        return read_metrics(self.directory) if self.directory else []

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after ``step``, as a resume from that step's checkpoint needs."""
        if not self.writes or not self._file("metrics.jsonl").exists():
            return
        kept = [record for record in self.metrics() if record.get("step", 0) <= step]
        self._write(
            "metrics.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        )

    def read_results(self) -> dict[str, Any]:
        """What results.json holds; empty where there is none yet."""
        return read_json(self._file("results.json"))

    def results(self, values: dict[str, Any]) -> None:
        """Merge ``values`` into results.json (the final metrics stand under ``metrics``)."""
        if self.writes:
            known = read_json(self._file("results.json"))
            self._write("results.json", json_text({**known, **values}))

    def write_text(self, name: str, text: str) -> None:
        """Write one file of the run atomically: readers see the old content or the new, never a part."""
        if self.writes:
            self.path(name)
            self._write(name, text)

    def end(self, status: str, error: str | None = None) -> None:
        """Record how the run ended and let go of it; "completed", "interrupted" or "failed"."""
        if self.writes and self._lock is not None:
            try:
                known = read_json(self._file("status.json"))
                self._write_status({**known, "status": status, "ended": _now(), "error": error})
            finally:
                self._release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("completed")
            return
        status, message = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, Interrupted):
            status, message = "interrupted", str(error)
        elif isinstance(error, KeyboardInterrupt):
            status, message = "interrupted", "stopped by SIGINT"
        elif isinstance(error, ClipxError):
            message = error.message
        # What went wrong matters more than what goes wrong while it is written down.
        with contextlib.suppress(ClipxError):
            if status == "failed" and not isinstance(error, ClipxError):
                self.write_text("error.txt", "".join(traceback.format_exception(kind, error, trace)))
        with contextlib.suppress(ClipxError):
            self.end(status, message)

    def _file(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / name

    def _guarded(self) -> contextlib.AbstractContextManager[None]:
        assert self.directory is not None
        return explained(self.directory)

    def _write(self, name: str, text: str) -> None:
        with self._guarded():
            write_atomic(self._file(name), text)

    def _write_status(self, values: dict[str, Any]) -> None:
        now = time.monotonic()
        seconds = values.get("seconds") or 0.0
        status = {
            "status": values["status"],
            "started": values.get("started"),
            "ended": values.get("ended"),
            "seconds": round(seconds + (now - self._clock), 3),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "error": values.get("error"),
            **({"resumed": values["resumed"]} if values.get("resumed") else {}),
        }
        self._clock = now
        target = self._file("status.json")
        with self._guarded():
            try:
                write_atomic(target, json_text(status))
            except OSError:
                # On a full disk the block that the old status occupies is still ours to fill.
                if not target.exists():
                    raise
                target.write_text(json_text(status), encoding="utf-8")

    def _acquire(self) -> None:
        target = self._file(".lock")
        with self._guarded():
            target.touch()
        try:
            patience = time.monotonic() + 2.0  # a reader that looks at the lock holds it for a moment
            while (lock := hold(target)) is None and time.monotonic() < patience:
                time.sleep(0.02)
        except OSError:
            self._lock = target.open("ab")  # no locks on this file system: the pid in the status must do
            return
        if lock is None:
            pid = read_json(self._file("status.json")).get("pid", "?")
            raise Busy(
                f"process {pid} is working on {self.directory}",
                hint="wait for it, or stop it, and then resume",
            )
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            let_go(self._lock)
            self._lock = None


def _claim(family: Path) -> Path:
    taken = [int(match[1]) for entry in os.listdir(family) if (match := VERSION.fullmatch(entry))]
    number = max(taken, default=0) + 1
    while True:
        directory = family / f"v{number:04d}"
        try:
            directory.mkdir()
            return directory
        except FileExistsError:  # another start was quicker
            number += 1


def _yaml(config: DictConfig | dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config) if isinstance(config, dict) else config, resolve=True)


def _command_line(argv: Sequence[str] | None) -> str:
    return shlex.join(["clipx", *sys.argv[1:]] if argv is None else argv)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
