"""Examples by index, and what identifies them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from clipx.data.fields import Example
from clipx.errors import BadSample


class Indexed(Protocol):
    """A source whose items have positions."""

    def __getitem__(self, index: int, /) -> Example: ...


def one_by_one(source: Indexed, indices: Iterable[int]) -> list[Example | BadSample]:
    """Read items one after another, with the bad ones as values instead of exceptions.

    Args:
        source: a source with a length.
        indices: positions in it.

    Returns:
        One example or ``BadSample`` an index, in the given order.
    """
    found: list[Example | BadSample] = []
    for index in indices:
        try:
            found.append(source[index])
        except BadSample as bad:
            # Without its frames the exception is small, and it crosses processes.
            found.append(bad.with_traceback(None))
    return found


def position(index: int, length: int, name: str) -> int:
    """Check a position in a source; negative ones count from the end.

    Raises:
        IndexError: outside of the source.
    """
    if not -length <= index < length:
        raise IndexError(f"{name} has {length} items, there is no item {index}")
    return index + length if index < 0 else index


def fingerprint(*parts: Any) -> str:
    """A short hash of what determines a source's content and order.

    Args:
        parts: strings, numbers, None, and lists, tuples or dicts of them.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    _update(digest, parts)
    return digest.hexdigest()


def _update(digest: "hashlib.blake2b", part: Any) -> None:
    # Every part is framed by its kind and length, so that ("ab", "c") and ("a", "bc") differ.
    if isinstance(part, list | tuple):
        digest.update(f"[{len(part)}".encode())
        for item in part:
            _update(digest, item)
    elif isinstance(part, dict):
        _update(digest, [[str(key), part[key]] for key in sorted(part, key=str)])
    else:
        text = repr(part).encode("utf-8", "surrogatepass")
        digest.update(f"({len(text)}".encode() + text)


def file_state(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds of a file; (-1, -1) where there is none."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return state.st_size, state.st_mtime_ns
