"""Vectors of captions on disk, by the hash of the caption: many processes read and write it at a time."""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_REMEMBERED = 1 << 16
"""Vectors that a process keeps at hand."""
_PATIENCE = 60.0
"""Seconds that one writer waits for another."""


def default_folder() -> Path:
    """Where vectors are kept: ``$CLIPX_CACHE/captions``, else ``~/.cache/clipx/captions``."""
    cache = os.environ.get("CLIPX_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "clipx") / "captions"


class CaptionStore:
    """The vectors that one encoder gives captions.

    A store that cannot be read or written is passed over: it saves time and nothing else.

    Args:
        encoder: names the encoder and its weights, as part of a file name.
        width: S of its vectors.
        folder: where the file lies; None for ``default_folder()``.
    """

    def __init__(self, encoder: str, width: int, folder: Path | None = None) -> None:
        self.path = (folder or default_folder()) / f"{encoder}.sqlite"
        self.width = width
        self._known: dict[bytes, np.ndarray] = {}
        self._open: tuple[int, sqlite3.Connection] | None = None

    def filled(self, captions: Sequence[str], embed: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """Vectors float32 ``[N, S]`` of captions; those that are not known are embedded and kept.

        Args:
            captions: any, also twice.
            embed: ``list[str] -> float32 [M, S]``.
        """
        keys = [
            hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            for each in captions
        ]
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._read(dict.fromkeys(key for key in keys if key not in self._known))
        missing = {key: text for key, text in zip(keys, captions, strict=True) if key not in self._known}
        if missing:
            made = embed(list(missing.values())).float().numpy()
            new = dict(zip(missing, made, strict=True))
            self._known |= new
            self._write(new)
        return torch.from_numpy(np.stack([self._known[key] for key in keys]))

    def _read(self, keys: dict[bytes, None]) -> None:
        with contextlib.suppress(sqlite3.Error, OSError):
            connection = self._connection()
            for key in keys:
                row = connection.execute("SELECT vector FROM vectors WHERE caption = ?", (key,)).fetchone()
                if row is not None and len(row[0]) == 4 * self.width:
                    self._known[key] = np.frombuffer(row[0], dtype="<f4")

    def _write(self, new: dict[bytes, np.ndarray]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in new.items()]
        with contextlib.suppress(sqlite3.Error, OSError), self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    def _connection(self) -> sqlite3.Connection:
        """This process's connection: a loader process must not use the one of its parent."""
        if self._open is None or self._open[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (caption BLOB PRIMARY KEY, vector BLOB)")
            self._open = os.getpid(), connection
        return self._open[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None, "_known": {}}  # for a loader process that is spawned
