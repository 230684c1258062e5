"""``clipx eval``: a suite's cells -> runs -> one report; a report that would not change is pointed to."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import config, console, launch
from clipx.commands.recipe import Options, carry_out
from clipx.errors import ClipxError
from clipx.run import Run, output_root
from clipx.runs import all_runs, find_run, shown
from clipx.suites.cells import Cell, cells_of, digest_of
from clipx.suites.index import CellIndex, Entry
from clipx.suites.plan import recalled, remember, unfinished
from clipx.suites.rows import state_of, table_of
from clipx.suites.suite import Suite, open_suite

if TYPE_CHECKING:
    from clipx.reports.suite import Report

_SHOWN_FAILURES = 10


def execute(options: Options, *, retry: bool = False) -> int:
    """Run what is left of a suite and report it; returns the exit code, 1 where cells failed.

    Args:
        options: the command line.
        retry: try failed cells again.

    Raises:
        ClipxError: the request cannot be carried out; nothing has been started.
    """
    console.configure(quiet=options.quiet)
    config.import_from(options.config_dir)
    root = output_root(options.output_root)
    suite = open_suite(options.overrides, method=options.method, config_dir=options.config_dir)
    if suite.launcher is not None:
        launch.check_launcher("eval", suite.launcher, suite.launcher_settings)
    index = CellIndex(root)
    drafts = suite.drafts(root)
    digest = digest_of(drafts, options.config_dir)
    cells = recalled(index, digest)
    left = None if cells is None else unfinished(cells, index, retry=retry)
    if cells is None or left:
        cells = cells_of(drafts, options.config_dir)
        left = unfinished(cells, index, retry=retry)
        if index.folder.is_dir():  # conf/ may have changed since the cells were computed, and they have not
            _remember(index, digest, cells)
    if options.show_config:
        return _show(suite, cells, index, options)
    if not left:
        found = _report_as_it_is(root, suite, state_of(suite, cells, index))
        if found is not None:
            return _finish(options, suite, cells, index, found)
    return _run(options, suite, cells, left or [], index, digest)


def compare(options: Options) -> int:
    """Put two evals side by side, cell by cell; returns the exit code.

    Args:
        options: whose overrides are two runs, and perhaps ``metric=NAME``.

    Raises:
        ClipxError: other than two runs, one of them is none, or they have nothing to compare.
    """
    from clipx.reports import compare as reports

    root = output_root(options.output_root)
    metric = None
    runs = []
    for word in options.overrides:
        key, separator, value = word.partition("=")
        if separator and key == "metric":
            metric = value
        else:
            runs.append(find_run(root, word, command="eval"))
    if len(runs) != 2:
        raise ClipxError(
            f"--compare takes two evals, not {len(runs)}",
            hint="clipx eval --compare adapters/v0001 adapters/v0002; clipx runs compare takes any runs",
        )
    found = reports.compare_runs(runs[0], runs[1], metric)
    if options.json:
        console.json_line(
            {
                "runs": [str(run) for run in runs],
                "metric": found.metric,
                "methods": [dict(zip(reports.COLUMNS, row, strict=True)) for row in found.rows()],
                "only_first": found.only_first,
                "only_second": found.only_second,
            }
        )
        return 0
    console.table(reports.COLUMNS, found.rows(), right=reports.COLUMNS[1:])
    for note in found.notes():
        print(note)
    return 0


def _run(
    options: Options, suite: Suite, cells: list[Cell], left: list[Cell], index: CellIndex, digest: str
) -> int:
    settings = {"command": "eval", "method": suite.name, "suite": suite.described(), "cells": len(cells)}
    run = Run.create(index.root, "eval", suite.name, settings, argv=options.argv, overrides=options.overrides)
    outcome = carry_out(
        options,
        run,
        lambda: _work(options, suite, cells, left, index, run, digest),
        method=suite.name,
        go_on="the same command goes on: what is finished is not made again",
    )
    if outcome.code:
        return outcome.code
    assert run.directory is not None
    return _finish(options, suite, cells, index, run.directory)


def _work(
    options: Options,
    suite: Suite,
    cells: list[Cell],
    left: list[Cell],
    index: CellIndex,
    run: Run,
    digest: str,
) -> dict[str, Any]:
    """Compute the cells that are left, then write the report; returns how many cells there are."""
    assert run.directory is not None
    computed = 0.0
    if left:
        from clipx.recipes import eval as recipe
        from clipx.suites.cells import in_order_of_work

        _remember(index, digest, cells)
        done = len({cell.key for cell in cells}) - len(left)
        console.info(f"{len(left)} cells to compute" + (f", {done} finished" if done else ""))
        failed = {cell.key: entry for cell in left if (entry := index.find(cell.key)) is not None}
        failed = {key: entry for key, entry in failed.items() if entry.status == "failed"}
        work = recipe.Work(in_order_of_work(left), index.root, options.config_dir, failed)
        launcher, jobs = suite.launcher, suite.jobs
        computed = recipe.main(work, launcher=launcher, jobs=jobs, settings=suite.launcher_settings)[
            "computed"
        ]
    report = _report(options, suite, cells, index, run.directory)
    run.results(
        {
            "state": state_of(suite, cells, index),
            "summary": {"columns": report.summary_columns, "rows": report.summary_rows},
            "files": [file.relative_to(run.directory).as_posix() for file in report.files],
        }
    )
    counts = Counter(entry.status for entry in _entries(cells, index))
    return {"cells": len(cells), "computed": int(computed), "failed": counts["failed"]}


def _report(options: Options, suite: Suite, cells: list[Cell], index: CellIndex, folder: Path) -> Report:
    table = table_of(suite, cells, index, folder)
    if suite.claims is None:
        from clipx.reports.suite import write_report

        return write_report(table, folder)
    from clipx.reports.claims import write_claims
    from clipx.suites.outcomes import outcomes_of

    return write_claims(outcomes_of(suite, cells, index, options.argv), table, folder)


def _report_as_it_is(root: Path, suite: Suite, state: str) -> Path | None:
    """The newest report that shows just this; None where there is none."""
    for run in reversed(all_runs(root, "eval", suite.name)):
        files = run.results.get("files") or []
        whole = all((run.path / file).is_file() for file in files)
        if run.status == "completed" and run.results.get("state") == state and files and whole:
            return run.path
    return None


def _finish(options: Options, suite: Suite, cells: list[Cell], index: CellIndex, folder: Path) -> int:
    """Print what came of it."""
    failed = [
        (cell, entry)
        for cell, entry in zip(cells, _entries(cells, index), strict=True)
        if entry.status != "completed"
    ]
    code = 1 if failed else 0
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if options.json:
        table = table_of(suite, cells, index, folder)
        rows = [{key: value for key, value in asdict(row).items() if key != "config"} for row in table.rows]
        console.json_line({"run": str(folder), "suite": suite.name, "metric": table.metric, "rows": rows})
        return code
    if options.quiet:
        print(folder, flush=True)
        return code
    columns = results["summary"]["columns"]
    console.table(columns, results["summary"]["rows"], right=columns[1:])
    print(f"\nreport  {shown(folder)}: {', '.join(results['files'])}", flush=True)
    if failed:
        _tell(failed)
    return code


def _tell(failed: Sequence[tuple[Cell, Entry]]) -> None:
    print(f"\n{len(failed)} cell{'s' if len(failed) > 1 else ''} failed:")
    for cell, entry in failed[:_SHOWN_FAILURES]:
        print(f"  {cell.label}: {entry.error or 'stopped'}")
    if len(failed) > _SHOWN_FAILURES:
        print(f"  ... and {len(failed) - _SHOWN_FAILURES} more")
    print("--retry tries them again", flush=True)


def _remember(index: CellIndex, digest: str, cells: Sequence[Cell]) -> None:
    with contextlib.suppress(OSError):  # a disk that is full costs time here, nothing else
        remember(index, digest, cells)


def _entries(cells: Sequence[Cell], index: CellIndex) -> list[Entry]:
    return [index.find(cell.key) or Entry(None, "running") for cell in cells]


def _show(suite: Suite, cells: Sequence[Cell], index: CellIndex, options: Options) -> int:
    """Print the cells and what is known of them, without running anything."""
    entries = [index.find(cell.key) for cell in cells]
    states = ["-" if entry is None else entry.status for entry in entries]
    if options.json:
        listed = [
            {"cell": cell.key, "state": state, "command_line": cell.command_line}
            for cell, state in zip(cells, states, strict=True)
        ]
        console.json_line({"suite": suite.name, **suite.described(), "cells": listed})
        return 0
    console.table(
        ["cell", "state", "command"],
        [[cell.key, state, cell.command_line] for cell, state in zip(cells, states, strict=True)],
    )
    return 0
