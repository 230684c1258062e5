"""Paths that data names, never followed outside of the data's own root."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from clipx.data.images import EXTENSIONS
from clipx.errors import ClipxError

OUTSIDE = "outside the root"
MISSING = "missing image"


class Root:
    """A folder that bounds where the paths of a data set may lead.

    Args:
        path: the folder; it may itself be a symbolic link.
        name: what to call it in an error, for example ``data.root``.

    Raises:
        ClipxError: there is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "data.root") -> None:
        given = Path(path).expanduser()
        if not given.exists():
            raise ClipxError(f"{name}={given} does not exist", hint=f"the working directory is {Path.cwd()}")
        if not given.is_dir():
            raise ClipxError(
                f"{name}={given} is not a folder", hint="data=table reads a CSV, JSONL or Parquet file"
            )
        self.path = given.resolve()
        self._real: dict[str, str] = {}

    def locate(self, text: str) -> tuple[str | None, str]:
        """Find the file that a path in the data means.

        Args:
            text: relative to the root, or absolute and inside of it; ``/`` or ``\\`` between folders.

        Returns:
            The path relative to the root with ``/``, and ""; or None, and ``OUTSIDE`` or ``MISSING``.
        """
        text = text.strip()
        if not text or "\0" in text:
            return None, MISSING
        if os.sep == "/" and "\\" in text:
            text = text.replace("\\", "/")
        if re.match(r"[A-Za-z]:[\\/]", text) and os.sep == "/":
            return None, OUTSIDE
        full = os.path.normpath(os.path.join(self.path, text))
        if not self._contains(full):
            return None, OUTSIDE
        # One look at the file itself, and the folder above it from memory: data names millions of paths.
        try:
            found = os.lstat(full)
            if stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(full)
                found = os.stat(full) if self._contains(real) else found
            else:
                real = os.path.join(self._real_folder(os.path.dirname(full)), os.path.basename(full))
        except (OSError, ValueError):
            return None, MISSING
        if not self._contains(real):
            return None, OUTSIDE
        if not stat.S_ISREG(found.st_mode):
            return None, MISSING
        return full[len(str(self.path)) :].lstrip(os.sep).replace(os.sep, "/"), ""

    def images(self, skipped: dict[str, int]) -> Iterator[str]:
        """Every image file below the root, in a fixed order.

        Folders and files whose names begin with a dot are passed over. Links are followed only where they
        stay inside.

        Args:
            skipped: counts what was left out, by reason; added to.

        Yields:
            Paths relative to the root with ``/``.
        """
        yield from self._walk(str(self.path), "", skipped)

    def _walk(self, folder: str, prefix: str, skipped: dict[str, int]) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            skipped["unreadable folder"] = skipped.get("unreadable folder", 0) + 1
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            is_image = os.path.splitext(entry.name)[1].lower() in EXTENSIONS
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not self._contains(real):
                    skipped[OUTSIDE] = skipped.get(OUTSIDE, 0) + 1
                    continue
                # A link to a folder above itself would be walked for ever.
                if (folder + os.sep).startswith(real + os.sep):
                    continue
            if entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", skipped)
            elif is_image and entry.is_file():
                yield prefix + entry.name

    def _contains(self, path: str) -> bool:
        return path == str(self.path) or path.startswith(os.path.join(str(self.path), ""))

    def _real_folder(self, folder: str) -> str:
        # Resolving is slow and a folder holds many files.
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        return self._real[folder]


def locate_all(
    root: Root, texts: Iterable[str | None], skipped: dict[str, int], where: str
) -> list[str | None]:
    """Find many files, count what is missing, and refuse data of which most is missing.

    Args:
        root: where they must lie.
        texts: a path an item, None or blank where the data has none.
        skipped: counts by reason; added to.
        where: what to call the data in an error.

    Returns:
        A path relative to the root, or None, an item.

    Raises:
        ClipxError: more than half of the paths name no file inside of the root.
    """
    found: list[str | None] = []
    lost: dict[str, list[str]] = {}
    cache: dict[str, tuple[str | None, str]] = {}
    for text in texts:
        key = text or ""
        if key not in cache:
            cache[key] = root.locate(key)
        place, reason = cache[key]
        found.append(place)
        if place is None:
            lost.setdefault(reason, []).append(key)
    for reason, paths in lost.items():
        skipped[reason] = skipped.get(reason, 0) + len(paths)
    count = sum(map(len, lost.values()))
    if found and count * 2 > len(found):
        most = max(lost, key=lambda reason: len(lost[reason]))
        example = next((path for path in lost[most] if path.strip()), "")
        if re.match(r"[a-z0-9+]+://", example):
            raise ClipxError(
                f"{where} names images by address ({example}), and clipx does not download",
                hint="fetch them first, for example with img2dataset, then data=webdataset or data=folder",
            )
        raise ClipxError(
            f"{count} of the {len(found)} images that {where} names cannot be used ({most}: {example!r})",
            hint=f"paths are looked for in {root.path}, and not followed outside of it",
        )
    return found
