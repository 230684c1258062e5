"""``clipx features``: what the store of embeddings holds; check it, and make room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx import console
from clipx.errors import ClipxError
from clipx.features.inventory import Stored, inventory, prune, remove
from clipx.features.store import default_root

_DAY = 86400.0


def store_root(given: str | None) -> Path:
    """The store that is meant: the folder given, else CLIPX_CACHE/features, else ~/.cache/clipx/features."""
    return Path(given).expanduser() if given else default_root()


def listing(root: Path, as_json: bool) -> None:
    """Print every entry: what it is of, rows, size, age, state."""
    entries = inventory(root)
    if as_json:
        console.json_line([_as_json(entry) for entry in entries])
        return
    if not entries:
        print(f"there are no features in {root}")
        return
    console.table(
        ["key", "bank", "split", "model", "precision", "rows", "size", "age", "state"],
        [_row(entry) for entry in entries],
        right=["rows", "size"],
    )
    print(f"\n{len(entries)} entries, {_bytes(sum(entry.size for entry in entries))} in {root}")


def verify(root: Path, as_json: bool) -> None:
    """Check every file of every entry.

    Raises:
        ClipxError: something is damaged.
    """
    entries = inventory(root, verify=True)
    bad = [entry for entry in entries if entry.state == "damaged"]
    if as_json:
        console.json_line({"checked": len(entries), "damaged": [_as_json(entry) for entry in bad]})
    for entry in bad:
        console.warn(f"{entry.folder}: {entry.problem}")
    if bad:
        raise ClipxError(f"{len(bad)} of {len(entries)} entries are damaged", hint="clipx features prune")
    if not as_json:
        print(f"{len(entries)} entries in {root} are as they were written")


def clean(root: Path, *, days: float | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Delete what is damaged or left over; with ``days`` what is older; or everything.

    Raises:
        ClipxError: a negative number of days, or something cannot be deleted.
    """
    if days is not None and days < 0:
        raise ClipxError(f"--older {days:g} is no number of days", hint="--older 30")
    older = None if days is None else days * _DAY
    going = prune(inventory(root, verify=True), older=older, everything=everything)
    if not dry_run:
        remove(going)
    size = sum(entry.size for entry in going)
    if as_json:
        console.json_line(
            {"removed": [_as_json(entry) for entry in going], "bytes": size, "dry_run": dry_run}
        )
        return
    word = "would be removed" if dry_run else "removed"
    print(f"{len(going)} entries {word}, {_bytes(size)}")


def _row(entry: Stored) -> list[Any]:
    told = entry.description
    return [
        entry.key[:8],
        told.get("bank", ""),
        told.get("split", ""),
        str(told.get("model", ""))[:8],
        told.get("precision", ""),
        entry.rows,
        _bytes(entry.size),
        console.duration(entry.age),
        entry.state,
    ]


def _as_json(entry: Stored) -> dict[str, Any]:
    return {
        "key": entry.key,
        "folder": str(entry.folder),
        "state": entry.state,
        "rows": entry.rows,
        "bytes": entry.size,
        "age": entry.age,
        "problem": entry.problem,
        **{name: value for name, value in entry.description.items() if name != "format"},
    }


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
