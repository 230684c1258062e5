"""The terminal: results go to stdout, everything else to stderr; plain text where nobody is looking."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_LISTED = 8
"""Names that are given before the others are counted."""

_quiet = False
_heard = True


def configure(*, quiet: bool, heard: bool = True) -> None:
    """Choose once per process whether ``info`` speaks and progress is shown.

    Args:
        quiet: only warnings, errors and the result's location are wanted.
        heard: False in the processes of a launch that leave all but errors to the main process.
    """
    global _quiet, _heard
    _quiet, _heard = quiet or not heard, heard


def quiet() -> bool:
    """Whether only errors and the result's location are wanted."""
    return _quiet


def stderr() -> Console:
    """The rich console for progress and notes; silent under ``--quiet``."""
    from rich.console import Console

    return Console(file=sys.stderr, quiet=_quiet)


def info(message: str) -> None:
    """One line of progress on stderr, unless ``--quiet``."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line that the user should see, on stderr, also under ``--quiet``."""
    if not _heard:
        return
    print(_styled("warning:", "1;33", sys.stderr), message, file=sys.stderr, flush=True)


def error(message: str, hint: str | None = None) -> None:
    """``error: ...`` and, where there is one, ``hint: ...`` on stderr."""
    print(_styled("error:", "1;31", sys.stderr), message, file=sys.stderr)
    if hint:
        print(_styled("hint:", "1;36", sys.stderr), hint, file=sys.stderr)
    sys.stderr.flush()


def json_line(value: Any, file: TextIO | None = None) -> None:
    """One JSON value on stdout (or ``file``); numbers that JSON lacks become null."""
    print(json.dumps(finite(value), ensure_ascii=False), file=file or sys.stdout, flush=True)


def finite(value: Any) -> Any:
    """A copy made of JSON types: NaN and infinities become None, tensors and arrays numbers or lists."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return finite(value.tolist())
    return str(value)


def number(value: Any) -> str:
    """A metric as a person reads it: four significant digits, integers as they are, a dash for none."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as ``4.2 s``, ``3m 12s``, ``5h 07m`` or ``2d 03h``; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if not hours:
        return f"{minutes}m {rest:02d}s"
    days, hours_left = divmod(hours, 24)
    return f"{days}d {hours_left:02d}h" if days else f"{hours}h {minutes_left:02d}m"


def listed(names: Sequence[str]) -> str:
    """The first names and how many more there are: ``ant, bee and 40 more``."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> None:
    """Print a table on stdout: drawn by rich on a terminal, aligned columns of plain text elsewhere.

    Args:
        columns: headings.
        rows: one sequence a row, as long as ``columns``; floats are shortened by ``number``.
        right: headings of the columns that are aligned to the right (numbers).
    """
    cells = [[number(cell) for cell in row] for row in rows]
    rightward = set(right)
    if _is_terminal(sys.stdout):
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for name in columns:
            drawn.add_column(name, justify="right" if name in rightward else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*map(Text, row))
        Console().print(drawn)
        return
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        aligned = (
            cell.rjust(width) if name in rightward else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        )
        print("  ".join(aligned).rstrip())
    sys.stdout.flush()


def metrics_table(metrics: dict[str, Any]) -> None:
    """Print metrics, one a row; ``<name>_ci`` stands beside ``<name>`` as a half-width."""
    rows = []
    for name, value in metrics.items():
        if name.endswith("_ci") and name[: -len("_ci")] in metrics:
            continue
        interval = metrics.get(f"{name}_ci")
        rows.append([name, number(value) + (f" ± {interval:.2g}" if interval is not None else "")])
    if rows:
        table(["metric", "value"], rows)


def _styled(text: str, code: str, file: TextIO) -> str:
    return f"\033[{code}m{text}\033[0m" if _is_terminal(file) else text


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
