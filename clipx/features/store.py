"""The store of frozen embeddings on disk: entries that are whole or not there, named by their content.

An entry is a folder of ``.npy`` arrays, ``.jsonl`` lists of strings and a ``meta.json``. It grows in a
folder of its own and is renamed to its place when complete, so that nobody ever sees half of one. One
process at a time writes an entry; others wait and use its result. A writer that was killed leaves a record
of how far it came, and the next one goes on from there.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from clipx.errors import ClipxError
from clipx.files import sync, write_atomic

try:
    import fcntl
except ImportError:  # Windows: concurrent writers each write their own copy, the first to finish wins
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
"""Part of every key: a change of layout or meaning makes old entries invisible."""

META_FILE = "meta.json"
PROGRESS_FILE = "progress.json"
_BLOCK = 2**20
_BLOCKS = 256

log = logging.getLogger(__name__)


def default_root() -> Path:
    """Where embeddings are kept: ``$CLIPX_CACHE/features``, else ``~/.cache/clipx/features``."""
    cache = os.environ.get("CLIPX_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "clipx") / "features"


def content_key(description: Mapping[str, Any]) -> str:
    """A name for what a description describes: 32 hex digits, equal for equal (JSON) descriptions."""
    text = json.dumps({**description, "format": FORMAT}, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_key(name: str) -> bool:
    """Whether a name is one that ``content_key`` gives."""
    return len(name) == 32 and all(letter in "0123456789abcdef" for letter in name)


@dataclass(frozen=True)
class Entry:
    """A complete entry: memory-mapped arrays, lists of strings, and the writer's last state."""

    folder: Path
    arrays: dict[str, NDArray[Any]]
    lists: dict[str, list[str]]
    state: dict[str, Any]


class _Damaged(Exception):
    """An entry or a record of progress that does not hold together."""


def open_entry(root: Path, key: str) -> Entry | None:
    """The entry of this key, or None where there is none that is whole.

    Sizes are checked, and a checksum of up to 256 MiB of every file, spread evenly.
    """
    folder = root / key
    if not folder.is_dir():
        return None
    try:
        return _read(folder)
    except (_Damaged, OSError, ValueError, KeyError, TypeError) as problem:
        log.warning("stored features %s are damaged (%s) and will be made again", folder, problem)
        return None


def _read(folder: Path) -> Entry:
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    for name, (size, checksum) in meta["files"].items():
        if (folder / name).stat().st_size != size or _checksum(folder / name) != checksum:
            raise _Damaged(f"{name} is not what was written")
    arrays = {name: _mapped(folder / f"{name}.npy") for name in meta["arrays"]}
    lists = {name: _read_lines(folder / f"{name}.jsonl") for name in meta["lists"]}
    return Entry(folder, arrays, lists, meta["state"])


def _mapped(path: Path) -> NDArray[Any]:
    # Copy-on-write, so that torch takes it without a copy and a stray write stays in this process.
    array = np.load(path, mmap_mode="c" if path.stat().st_size > _header_size(path) else None)
    return array


def _header_size(path: Path) -> int:
    with path.open("rb") as file:
        npy_format.read_magic(file)
        npy_format.read_array_header_1_0(file)
        return file.tell()


def _read_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _checksum(path: Path) -> int:
    size, value = path.stat().st_size, 0
    step = max(_BLOCK, -(-size // _BLOCKS))
    with path.open("rb") as file:
        for offset in range(0, size, step):
            file.seek(offset)
            value = zlib.crc32(file.read(_BLOCK), value)
    return value


def obtain(
    root: Path, description: Mapping[str, Any], write: Callable[["Writer"], None]
) -> tuple[Entry, bool]:
    """The entry that ``description`` names, written by ``write`` where it does not exist yet.

    Args:
        root: of the store; made where missing.
        description: what determines the content, JSON values only.
        write: appends everything to a ``Writer``, from where ``Writer.state`` says it stands.

    Returns:
        The entry, and whether it was written now.

    Raises:
        ClipxError: if the store cannot be written.
    """
    key = content_key(description)
    found = open_entry(root, key)
    if found is not None:
        return found, False
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _turn(root, key) as mine:
            found = open_entry(root, key)
            if found is not None:
                return found, False
            partial = root / f"{key}.partial"
            if not mine:
                partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".private", dir=root))
            try:
                with contextlib.closing(Writer(partial)) as writer:
                    write(writer)
                    writer.complete(description)
                _publish(partial, root, key)
            finally:
                if not mine:
                    shutil.rmtree(partial, ignore_errors=True)
        entry = open_entry(root, key)
    except OSError as problem:
        raise ClipxError(
            f"cannot keep features in {root}: {problem.strerror or problem}",
            hint="name a folder that has room and can be written: CLIPX_CACHE=DIR",
        ) from problem
    if entry is None:
        raise ClipxError(f"features in {root / key} cannot be read back", hint="is the disk sound?")
    return entry, True


@contextlib.contextmanager
def _turn(root: Path, key: str) -> Iterator[bool]:
    """Wait for this process's turn to write; False where the file system has no locks to take turns with."""
    if fcntl is None:
        yield False
        return
    with (root / f"{key}.lock").open("a") as lock:
        yield _lock(lock)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is encoding the same data: waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def lock_free(root: Path, key: str) -> bool:
    """Whether nobody is writing the entry of this key; True where the file system has no locks."""
    path = root / f"{key}.lock"
    if fcntl is None or not path.exists():
        return True
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
    return True


def check_entry(folder: Path) -> None:
    """Check sizes and checksums of a complete entry.

    Raises:
        Exception: of any kind, saying what is wrong.
    """
    _read(folder)


def _publish(partial: Path, root: Path, key: str) -> None:
    final = root / key
    try:
        os.rename(partial, final)
    except OSError:
        if not final.is_dir():
            raise
        if open_entry(root, key) is not None:  # a writer that took no turn was faster: its entry is as good
            shutil.rmtree(partial, ignore_errors=True)
            return
        grave = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".damaged", dir=root))
        os.rename(final, grave / key)
        os.rename(partial, final)
        shutil.rmtree(grave, ignore_errors=True)
    sync(root)


class Writer:
    """Appends to the arrays and lists of an entry that is not complete; ``record`` makes progress outlive a
    kill.

    Args:
        folder: of the unfinished entry; what an earlier writer recorded there is gone on from, what it wrote
            after its last record is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {}
        """What was handed to the last ``record``; empty at the start."""
        self._arrays: dict[str, _GrowingArray] = {}
        self._lists: dict[str, IO[bytes]] = {}
        try:
            self._resume()
        except (_Damaged, OSError, ValueError, KeyError, TypeError) as problem:
            if folder.is_dir():
                log.info("starting %s afresh (%s)", folder, problem)
            self.restart()

    def restart(self) -> None:
        """Drop all that was written."""
        self.close()
        self.state, self._arrays, self._lists = {}, {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def _resume(self) -> None:
        progress = json.loads((self.folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        for name, (dtype, shape) in progress["arrays"].items():
            self._arrays[name] = _GrowingArray(self.folder / f"{name}.npy", np.dtype(dtype), tuple(shape))
        for name, size in progress["lists"].items():
            path = self.folder / f"{name}.jsonl"
            if path.stat().st_size < size:
                raise _Damaged(f"{path.name} is shorter than recorded")
            os.truncate(path, size)
            self._lists[name] = path.open("ab")
        self.state = progress["state"]

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Append rows ``[B, ...]`` to the array of this name; dtype and row shape are set by the first."""
        if name not in self._arrays:
            self._arrays[name] = _GrowingArray(self.folder / f"{name}.npy", rows.dtype, (0, *rows.shape[1:]))
        self._arrays[name].append(rows)

    def extend(self, name: str, strings: Sequence[str]) -> None:
        """Append strings to the list of this name."""
        if name not in self._lists:
            self._lists[name] = (self.folder / f"{name}.jsonl").open("wb")
        self._lists[name].write(b"".join(json.dumps(string).encode() + b"\n" for string in strings))

    def strings(self, name: str) -> list[str]:
        """The list of this name as far as it has been written; empty where nothing was."""
        if name not in self._lists:
            return []
        self._lists[name].flush()
        return _read_lines(self.folder / f"{name}.jsonl")

    def record(self, state: dict[str, Any]) -> None:
        """Make everything appended so far durable, with ``state`` (JSON) to go on from."""
        self.state = state
        for array in self._arrays.values():
            array.flush()
        for file in self._lists.values():
            file.flush()
            os.fsync(file.fileno())
        progress = {
            "arrays": {name: (array.dtype.str, array.shape) for name, array in self._arrays.items()},
            "lists": {name: file.tell() for name, file in self._lists.items()},
            "state": state,
        }
        self._replace(PROGRESS_FILE, progress)

    def complete(self, description: Mapping[str, Any]) -> None:
        """Close the files and write ``meta.json``; the folder is then ready to be renamed into place."""
        self.record(self.state)
        self.close()
        (self.folder / PROGRESS_FILE).unlink()
        names = [f"{name}.npy" for name in self._arrays] + [f"{name}.jsonl" for name in self._lists]
        files = {name: ((self.folder / name).stat().st_size, _checksum(self.folder / name)) for name in names}
        meta = {
            "description": {**description, "format": FORMAT},
            "state": self.state,
            "arrays": {name: array.shape for name, array in self._arrays.items()},
            "lists": list(self._lists),
            "files": files,
        }
        self._replace(META_FILE, meta)

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        write_atomic(self.folder / name, json.dumps(content, indent=1))
        sync(self.folder)

    def close(self) -> None:
        """Close the files; what was not recorded may be lost."""
        for array in self._arrays.values():
            array.close()
        for file in self._lists.values():
            file.close()


class _GrowingArray:
    """A ``.npy`` file whose first axis grows: its header is of one length whatever the number of rows."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        header = self._header()
        size = len(header) + int(np.prod(shape)) * dtype.itemsize
        if shape[0] and path.stat().st_size < size:
            raise _Damaged(f"{path.name} is shorter than recorded")
        self.file = path.open("r+b" if shape[0] else "w+b")
        if not shape[0]:
            self.file.write(header)
        self.file.truncate(size)
        self.file.seek(size)

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        fields = {"descr": npy_format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        npy_format.write_array_header_1_0(buffer, fields)  # numpy pads it for a first axis of up to 21 digits
        return buffer.getvalue()

    def append(self, rows: NDArray[Any]) -> None:
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"rows {rows.dtype} {rows.shape} do not go on from {self.dtype} {self.shape}")
        self.file.write(np.ascontiguousarray(rows).data)
        self.shape = (self.shape[0] + len(rows), *self.shape[1:])

    def flush(self) -> None:
        end = self.file.tell()
        self.file.seek(0)
        self.file.write(self._header())
        self.file.seek(end)
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
