"""What became of claims: both sides, their difference with its interval, and the verdict."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from clipx import __version__
from clipx.reports.claims import ClaimOutcome
from clipx.suites.cells import Cell
from clipx.suites.claims import CHANCE, Claim, chance, verdict
from clipx.suites.index import CellIndex
from clipx.suites.suite import Suite
from clipx.tasks.intervals import mean_over_seeds


def outcomes_of(
    suite: Suite, cells: Sequence[Cell], index: CellIndex, argv: Sequence[str]
) -> list[ClaimOutcome]:
    """The outcome of every claim of a suite.

    Args:
        suite: of claims.
        cells: in the order of the suite's drafts.
        index: where their runs are found.
        argv: the command line that asked for it.
    """
    left = list(cells)
    outcomes = []
    for claim in suite.claims or ():
        ours, left = left[: suite.repetitions], left[suite.repetitions :]
        theirs: list[Cell] = []
        if claim.over != CHANCE:
            theirs, left = left[: suite.repetitions], left[suite.repetitions :]
        outcomes.append(_outcome(claim, ours, theirs, suite, index, argv))
    return outcomes


def _outcome(
    claim: Claim,
    ours: Sequence[Cell],
    theirs: Sequence[Cell],
    suite: Suite,
    index: CellIndex,
    argv: Sequence[str],
) -> ClaimOutcome:
    told: dict[str, Any] = {
        "command": claim.command,
        "method": claim.method,
        "statement": claim.statement,
        "metric": claim.metric,
        "over": claim.over,
        "repetitions": suite.repetitions,
        "budget": suite.budget,
        "seconds": sum(entry.seconds or 0.0 for cell in [*ours, *theirs] if (entry := index.find(cell.key))),
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
        "hardware": hardware(),
        "command_line": shlex.join(argv),
    }
    try:
        own = [_value(cell, claim.metric, index) for cell in ours]
        if theirs:
            other = [_value(cell, claim.metric, index) for cell in theirs]
        else:
            other = [claim.factor * _guessed(cell, claim.metric, index) for cell in ours]
    except LookupError as problem:
        return ClaimOutcome(**told, verdict="not measured", problem=str(problem))
    found = mean_over_seeds([first - second for first, second in zip(own, other, strict=True)])
    return ClaimOutcome(
        **told,
        verdict=verdict(found.low, found.high, claim.margin, lower=claim.lower),
        value=sum(own) / len(own),
        baseline=sum(other) / len(other),
        difference=found.value,
        low=found.low,
        high=found.high,
    )


def hardware() -> str:
    """What this machine computes with: its GPUs where torch can use one, else its processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _value(cell: Cell, metric: str, index: CellIndex) -> float:
    metrics = _results(cell, index).get("metrics") or {}
    value = metrics.get(metric)
    if not isinstance(value, int | float):
        raise LookupError(f"{cell.command_line} gives no {metric}, but {', '.join(metrics)}")
    return float(value)


def _guessed(cell: Cell, metric: str, index: CellIndex) -> float:
    found = chance(metric, _results(cell, index))
    if found is None:
        raise LookupError(f"what guessing gives is not known for {metric} of {cell.command_line}")
    return found


def _results(cell: Cell, index: CellIndex) -> dict[str, Any]:
    entry = index.find(cell.key)
    if entry is None or entry.run is None or entry.status != "completed":
        raise LookupError(f"{cell.command_line}: {(entry and entry.error) or 'not computed'}")
    return json.loads((index.root / entry.run / "results.json").read_text(encoding="utf-8"))
