"""``clipx runs``: what was run, how it ended, and how two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx import config, console
from clipx.commands.recipe import key_metric
from clipx.runs import Summary, all_runs, find_run, read_metrics, summary


def listing(root: Path, as_json: bool) -> None:
    """Print every run, the newest last."""
    runs = all_runs(root)
    if as_json:
        console.json_line([_as_json(run) for run in runs])
        return
    if not runs:
        console.info(f"no runs in {root} yet; `clipx pretrain` makes the first")
        return
    rows = []
    for run in runs:
        key = key_metric(run.metrics)
        best = f"{key} {console.number(run.metrics[key])}" if key else "-"
        lasted, age = console.duration(run.seconds), console.duration(run.age)
        rows.append([run.command, run.method, run.version, run.status, best, lasted, age])
    columns = ["command", "method", "version", "status", "result", "duration", "age"]
    console.table(columns, rows, right=["duration", "age"])


def show(root: Path, reference: str, as_json: bool) -> None:
    """Print one run: status, metrics, the command line, files, configuration."""
    path = find_run(root, reference)
    run = summary(path)
    records = read_metrics(path)
    settings = _settings(path)
    if as_json:
        last = records[-1] if records else None
        console.json_line({**_as_json(run), "results": run.results, "last_record": last, "config": settings})
        return
    print(f"{run.name}  {run.status}" + (f" ({run.error})" if run.error else ""))
    print(f"  path       {path}")
    print(f"  started    {run.started or '-'}, lasted {console.duration(run.seconds)}")
    for line in _read(path / "command.txt").splitlines():
        print(f"  command    {line}")
    if records:
        print(f"  records    {len(records)}, the last at step {records[-1].get('step', '-')}")
    files = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    print(f"  files      {' '.join(name for name in files if not name.startswith('.'))}")
    if run.metrics:
        print()
        console.metrics_table(run.metrics)
    print("\nconfiguration")
    for line in _read(path / "config.yaml").rstrip().splitlines():
        print(f"  {line}")


def compare(root: Path, references: list[str], as_json: bool) -> None:
    """Print where configurations differ and all metrics, the runs side by side."""
    runs = [summary(find_run(root, reference)) for reference in references]
    changed = config.differences(*(_settings(run.path) for run in runs))
    metrics = {name: None for run in runs for name in run.metrics}
    if as_json:
        console.json_line(
            {
                "runs": [run.name for run in runs],
                "config": changed,
                "metrics": {name: [run.metrics.get(name) for run in runs] for name in metrics},
            }
        )
        return
    names = [run.name for run in runs]
    if changed:
        console.table(["config", *names], [[key, *map(_cell, values)] for key, values in changed.items()])
    else:
        print("the configurations are the same")
    if metrics:
        print()
        rows = [[name, *(run.metrics.get(name) for run in runs)] for name in metrics]
        console.table(["metric", *names], rows, right=names)


def _as_json(run: Summary) -> dict[str, Any]:
    return {
        "command": run.command,
        "method": run.method,
        "version": run.version,
        "status": run.status,
        "path": str(run.path),
        "started": run.started,
        "ended": run.ended,
        "seconds": run.seconds,
        "error": run.error,
        "metrics": run.metrics,
    }


def _settings(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = yaml.load(_read(path / "config.yaml") or "{}", Loader=loader)
    return found if isinstance(found, dict) else {}


def _cell(value: Any) -> Any:
    return "-" if value is None else value if isinstance(value, float) else str(value)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
