"""What the store of embeddings holds, whether it is whole, and getting rid of what is not wanted."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.errors import ClipxError
from clipx.features.store import META_FILE, PROGRESS_FILE, check_entry, is_key, lock_free

STATES = ("whole", "unfinished", "encoding", "damaged", "leftover")
"""Complete; left by a writer that was killed, for the next; being written; unreadable; of no use."""


@dataclass(frozen=True)
class Stored:
    """One folder of the store: its key, state (one of ``STATES``), what it says it is, rows, bytes, age in
    seconds since it was last written, and what is wrong with it."""

    folder: Path
    key: str
    state: str
    description: dict[str, Any]
    rows: int
    size: int
    age: float
    problem: str | None = None


def inventory(root: Path, *, verify: bool = False) -> list[Stored]:
    """Everything in the store, the most recently written first; an absent store is empty.

    Args:
        root: of the store.
        verify: check sizes and checksums of every file; else only that the description can be read.
    """
    if not root.is_dir():
        return []
    found = [_look(folder, verify) for folder in root.iterdir() if folder.is_dir()]
    return sorted(found, key=lambda entry: (entry.age, entry.key))


def _look(folder: Path, verify: bool) -> Stored:
    files = [path for path in folder.rglob("*") if path.is_file()]
    times = [path.stat().st_mtime for path in files] or [folder.stat().st_mtime]
    common: dict[str, Any] = {
        "folder": folder,
        "key": folder.name.partition(".")[0],
        "size": sum(path.stat().st_size for path in files),
        "age": max(0.0, time.time() - max(times)),
    }
    if not is_key(folder.name):
        if not folder.name.endswith(".partial") or not is_key(folder.name.removesuffix(".partial")):
            return Stored(**common, state="leftover", description={}, rows=0)
        free = lock_free(folder.parent, common["key"])
        state = "unfinished" if free else "encoding"
        return Stored(**common, state=state, description={}, rows=_rows_so_far(folder))
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        rows = max((shape[0] for shape in meta["arrays"].values()), default=0)
        first = next((meta["arrays"][name][0] for name in ("image", "text") if name in meta["arrays"]), rows)
        if verify:
            check_entry(folder)
        return Stored(**common, state="whole", description=dict(meta["description"]), rows=int(first))
    except Exception as problem:  # whatever it is that a damaged file makes of reading it
        return Stored(
            **common, state="damaged", description={}, rows=0, problem=str(problem) or repr(problem)
        )


def _rows_so_far(folder: Path) -> int:
    try:
        progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        return int(progress["state"].get("done", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def prune(entries: Iterable[Stored], *, older: float | None = None, everything: bool = False) -> list[Stored]:
    """Which entries go: damaged ones and leftovers; those not written for ``older`` seconds; or all.

    Nothing that is being written goes.

    Args:
        entries: of ``inventory``.
        older: seconds; None keeps whole and unfinished entries of any age.
        everything: all of them.
    """
    return [
        entry
        for entry in entries
        if entry.state != "encoding"
        and (
            everything or entry.state in ("damaged", "leftover") or (older is not None and entry.age > older)
        )
    ]


def remove(entries: Iterable[Stored]) -> None:
    """Delete entries; their locks stay, for somebody may be waiting at one.

    Raises:
        ClipxError: one cannot be deleted.
    """
    for entry in entries:
        try:
            # Under another name first: a reader finds all of it or nothing.
            grave = entry.folder.with_name(f"{entry.folder.name}.removed")
            entry.folder.rename(grave)
            shutil.rmtree(grave)
        except OSError as problem:
            raise ClipxError(f"cannot delete {entry.folder}: {problem.strerror or problem}") from problem
