"""Tables of results as Markdown or CSV; what a terminal or a pipe gets is in ``clipx.console``."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clipx.console import number
from clipx.tasks.intervals import Estimate

METRIC_COLUMNS = ("metric", "value", "95% interval")


def metric_rows(estimates: Mapping[str, Estimate]) -> list[list[str]]:
    """Rows (metric, value, interval) of estimates; shares in [0, 1] with three decimals."""
    return [
        [name, _figure(each.value), f"{_figure(each.low)} to {_figure(each.high)}"]
        for name, each in estimates.items()
    ]


def _figure(value: float) -> str:
    return f"{value:.3f}" if 0 <= value < 1 or value == 1.0 else number(float(value))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> str:
    """A GitHub-flavoured Markdown table, ending in a newline.

    Args:
        columns: headings.
        rows: one sequence a row, as long as ``columns``; floats are shortened to four digits.
        right: headings of the columns that are aligned to the right.
    """
    rightward = set(right)
    lines = [columns, ["---:" if name in rightward else "---" for name in columns]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file's text: a line of headings, then one a row; None is an empty cell."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def _cell(value: Any) -> str:
    return number(value).replace("|", "\\|").replace("\n", " ")
