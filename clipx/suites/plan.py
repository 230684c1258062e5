"""The cells, remembered: to compose hundreds of configurations takes seconds, to read them less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from clipx.files import write_atomic
from clipx.suites.cells import Cell
from clipx.suites.index import CellIndex


def recalled(index: CellIndex, digest: str) -> list[Cell] | None:
    """The cells that were composed from the same things before, without their settings.

    Args:
        index: beside which they are kept.
        digest: of all that they were composed from.
    """
    try:
        found = json.loads(_file(index, digest).read_text(encoding="utf-8"))
        return [
            Cell(**{**each, "argv": tuple(each["argv"]), "overrides": tuple(each["overrides"])}, settings={})
            for each in found
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remember(index: CellIndex, digest: str, cells: Sequence[Cell]) -> None:
    """Keep cells for ``recalled``.

    Raises:
        OSError: they cannot be written.
    """
    path = _file(index, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in asdict(cell).items() if key != "settings"} for cell in cells]
    write_atomic(path, json.dumps(plain, ensure_ascii=False) + "\n")


def unfinished(cells: Sequence[Cell], index: CellIndex, *, retry: bool) -> list[Cell]:
    """The cells that are still to be computed, each key once.

    Args:
        cells: of a suite.
        index: what is known of them.
        retry: those that failed count, too.
    """
    left: dict[str, Cell] = {}
    for cell in cells:
        entry = index.find(cell.key)
        if entry is None or entry.status == "running" or (retry and entry.status == "failed"):
            left.setdefault(cell.key, cell)
    return list(left.values())


def _file(index: CellIndex, digest: str) -> Path:
    return index.folder / "plans" / f"{digest}.json"
