"""The outcomes of claims: as a table, as a page, and as a record that later pages are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clipx.console import duration
from clipx.files import write_atomic, write_problem
from clipx.reports import tidy
from clipx.reports.suite import Report, SuiteTable
from clipx.reports.tables import markdown

RECORD = "claims.json"
COLUMNS = ("method", "claim", "baseline", "method's", "difference", "95% interval", "verdict")


@dataclass(frozen=True)
class ClaimOutcome:
    """What became of one claim.

    Attributes:
        command, method: of the card.
        statement: the claim as a person reads it.
        metric: that it is about.
        over: the method that it is compared with, or ``chance``.
        repetitions: of each side.
        budget: how many times the usual one.
        seconds: that its cells took.
        date, version, hardware, command_line: of the measurement.
        verdict: ``not measured`` where a cell failed.
        problem: why it was not measured.
        value, baseline: means over the repetitions; over chance the baseline is factor x chance.
        difference, low, high: mean paired difference and its 95% interval.
    """

    command: str
    method: str
    statement: str
    metric: str
    over: str
    repetitions: int
    budget: float
    seconds: float
    date: str
    version: str
    hardware: str
    command_line: str
    verdict: Literal["holds", "does not hold", "inconclusive", "not measured"]
    problem: str | None = None
    value: float | None = None
    baseline: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        return f"{self.command}/{self.method}"

    def row(self) -> tuple[str, ...]:
        """Under ``COLUMNS``."""
        if self.difference is None or self.low is None or self.high is None:
            return (self.name, self.statement, "-", "-", "-", "-", self.verdict)
        spread = f"{self.low:+.3f} to {self.high:+.3f}"
        return (
            self.name,
            self.statement,
            f"{self.baseline:.3f}",
            f"{self.value:.3f}",
            f"{self.difference:+.3f}",
            spread,
            self.verdict,
        )


def write_claims(outcomes: Sequence[ClaimOutcome], table: SuiteTable, folder: Path) -> Report:
    """Write the record, the page and the tidy table of the cells.

    Args:
        outcomes: of the claims.
        table: the cells.
        folder: of the run.

    Raises:
        ClipxError: a file cannot be written.
    """
    cells = tidy.tidy(table)
    files = {
        "claims.md": page(outcomes),
        RECORD: json.dumps([asdict(each) for each in outcomes], indent=1, ensure_ascii=False) + "\n",
    }
    try:
        for name, text in files.items():
            write_atomic(folder / name, text)
        (folder / "results.parquet").write_bytes(tidy.parquet(cells))
        (folder / "results.csv").write_bytes(tidy.csv(cells))
    except OSError as problem:
        raise write_problem(problem, folder) from problem
    named = (*files, "results.parquet", "results.csv")
    return Report(COLUMNS, tuple(each.row() for each in outcomes), tuple(folder / name for name in named))


def page(outcomes: Sequence[ClaimOutcome]) -> str:
    """The claims and what became of them, as Markdown; those that do not hold stay in the table."""
    counts = {
        kind: sum(each.verdict == kind for each in outcomes)
        for kind in ("holds", "does not hold", "inconclusive", "not measured")
    }
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    parts = [
        "# Claims",
        f"{len(outcomes)} claims: {said}.",
        "A claim is what must hold at small scale for an implementation to count as right. It holds where "
        "the 95% interval of the paired difference over repetitions lies wholly on the claimed side of the "
        "margin, does not hold where it lies wholly on the other, and is inconclusive else.",
        markdown(COLUMNS, [each.row() for each in outcomes], right=COLUMNS[2:6]).strip(),
        "## How they were measured",
        markdown(
            ["method", "date", "version", "repetitions", "budget", "time", "hardware", "command"],
            [
                (
                    each.name,
                    each.date,
                    each.version,
                    str(each.repetitions),
                    f"{each.budget:g}x",
                    duration(each.seconds),
                    each.hardware,
                    f"`{each.command_line}`",
                )
                for each in outcomes
            ],
        ).strip(),
    ]
    problems = [f"- {each.name}: {each.problem}" for each in outcomes if each.problem]
    if problems:
        parts += ["## Not measured", "\n".join(problems)]
    return "\n\n".join(parts) + "\n"


def read_claims(path: Path) -> list[ClaimOutcome]:
    """The outcomes of a record that ``write_claims`` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such record.
    """
    try:
        return [ClaimOutcome(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except TypeError as problem:
        raise ValueError(f"{path} is no record of claims: {problem}") from problem
