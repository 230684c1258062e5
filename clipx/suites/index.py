"""What is known of every cell: which run computed it and how that ended; and who is computing it now.

    outputs/eval/.cells/<key>.json    points to the cell's run
    outputs/eval/.cells/<key>.lock    locked by the process that works on the cell

The pointer is written when a run has been claimed and again when it has ended, so that whatever stops a
process between the two leaves a pointer to a run that tells the rest. The kernel drops a lock however its
process ends.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from clipx.files import hold, let_go, write_atomic, write_problem
from clipx.runs import is_run, read_status

State = Literal["running", "completed", "failed"]


@dataclass(frozen=True)
class Entry:
    """What is known of a cell.

    Attributes:
        run: its run's directory, relative to the output root; None where it failed before it had one.
        status: ``running`` until the end of the run has been noted here.
        error: why it failed, else None.
        seconds: that it took.
        peak_memory_mb: the most memory that it held, in MB; None where that cannot be known.
    """

    run: str | None
    status: State
    error: str | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None


class CellIndex:
    """The cells that were computed under an output root, by their keys.

    Args:
        root: the output root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "eval" / ".cells"

    def find(self, key: str) -> Entry | None:
        """What is known of a cell; None where it was never begun, or its run is gone.

        An entry that says ``running`` is of a process that works on it or of one that was stopped; where its
        run has ended meanwhile, the entry says how.
        """
        try:
            entry = Entry(**json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        if entry.run is None:
            return entry
        directory = self.root / entry.run
        if not is_run(directory):
            return None
        if entry.status == "running":
            status = read_status(directory)
            if status["status"] in ("completed", "failed"):
                return replace(
                    entry, status=status["status"], error=status.get("error"), seconds=status.get("seconds")
                )
        return entry

    def note(self, key: str, entry: Entry) -> None:
        """Replace what is known of a cell.

        Raises:
            ClipxError: the index cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / f"{key}.json", json.dumps(asdict(entry)) + "\n")
        except OSError as problem:
            raise write_problem(problem, self.folder) from problem

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Work on a cell, alone: yields whether this process may; another that does so may not.

        Where the file system has no locks everybody may, and a cell may be computed twice.

        Raises:
            ClipxError: the index cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise write_problem(problem, self.folder) from problem
        try:
            lock = hold(self.folder / f"{key}.lock")
        except OSError:
            yield True
            return
        try:
            yield lock is not None
        finally:
            if lock is not None:
                let_go(lock)
