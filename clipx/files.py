"""Files that are whole or not there: atomic writes, whole lines, locks, and errors that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clipx.console import finite
from clipx.errors import ClipxError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: set[IO[bytes]] = set()
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file to fill, which takes the place of ``path`` when the block ends and all of it is on disk.

    A crash, or an error within the block, leaves the old content, and nothing else beside it.

    Raises:
        OSError: as the file system says.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    fresh = Path(name)
    try:
        yield fresh
        sync(fresh)
        os.chmod(fresh, 0o666 & ~_UMASK)  # mkstemp's are for one's own eyes
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by text or bytes so that a crash leaves the old content or the new, and nothing else.

    Raises:
        OSError: as the file system says.
    """
    with replacing(path) as fresh:
        fresh.write_bytes(content if isinstance(content, bytes) else content.encode())


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on disk.

    Raises:
        OSError: as the file system says.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # Windows does not open folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, made where missing, with one write, so that a reader never sees half of it.

    Args:
        path: the file.
        line: without the newline at its end.

    Raises:
        OSError: as the file system says.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def drop_partial_line(path: Path) -> None:
    """Cut off the last line of a file where a crash left it without its newline.

    Raises:
        OSError: as the file system says.
    """
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; empty where it is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def json_text(value: Any) -> str:
    """A value as the text of a JSON file that people read, too; numbers that JSON lacks become null."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n"


def write_problem(error: OSError, folder: Path) -> ClipxError:
    """A file-system error as the user's problem: which folder, and what to do."""
    reason = error.strerror or type(error).__name__
    return ClipxError(
        f"cannot write to {folder}: {reason}",
        hint="free some space there, or choose another folder with --output-root DIR (or CLIPX_OUTPUTS)",
    )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn an error of the file system within the block into the user's problem.

    Args:
        folder: that was written to.

    Raises:
        ClipxError: as ``write_problem`` says it.
    """
    try:
        yield
    except OSError as error:
        raise write_problem(error, folder) from error


def hold(path: Path) -> IO[bytes] | None:
    """Lock the file at ``path``, made where missing, until ``let_go`` or the end of this process.

    Returns:
        The open file that holds the lock; None where another process holds it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    lock = try_lock(path, "ab")
    if lock is not None:
        _held.add(lock)
    return lock


def let_go(lock: IO[bytes]) -> None:
    """Drop a lock that ``hold`` gave."""
    _held.discard(lock)
    lock.close()


def try_lock(path: Path, mode: str) -> IO[bytes] | None:
    """Lock the file at ``path`` for as long as what is returned stays open, here and in forked processes.

    Args:
        path: the file.
        mode: to open it in; ``rb`` does not make it where it is missing.

    Returns:
        The open file that holds the lock; None where another process holds it.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "no file locks")
    file: IO[bytes] = open(path, mode)  # noqa: SIM115 - it stays open for as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file


def _forget_locks() -> None:
    for lock in _held:
        lock.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    # A forked worker that outlives a killed run must not keep its lock.
    os.register_at_fork(after_in_child=_forget_locks)
