"""The runs that there are: found by what people call them, and read with a killed one's status put right."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipx.errors import ClipxError, did_you_mean
from clipx.files import json_text, read_json, try_lock, write_atomic

VERSION = re.compile(r"v(\d{4,})")
"""The name of a run's directory."""
KILLED = "killed: the process ended without a word"
"""The error of a run that was killed."""


@dataclass(frozen=True)
class Summary:
    """What a run's files say about it; ``status`` is running, completed, interrupted or failed."""

    path: Path
    command: str
    method: str
    version: str
    status: str
    started: str | None
    ended: str | None
    seconds: float | None
    error: str | None
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.command}/{self.method}/{self.version}"

    @property
    def metrics(self) -> dict[str, Any]:
        found = self.results.get("metrics")
        return found if isinstance(found, dict) else {}

    @property
    def age(self) -> float | None:
        """Seconds since the run began."""
        if self.started is None:
            return None
        return (datetime.now(UTC) - datetime.fromisoformat(self.started)).total_seconds()


def shown(path: str | os.PathLike[str]) -> str:
    """A path relative to the working directory where it lies below it, else as it is."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a run."""
    return (path / "config.yaml").is_file() and VERSION.fullmatch(path.name) is not None


def summary(path: Path) -> Summary:
    """Read one run's state, putting right the status of a run that was killed."""
    status = read_status(path)
    seconds = status.get("seconds")
    if status["status"] == "running" and status.get("started"):
        since = datetime.fromisoformat(status.get("resumed") or status["started"])
        seconds = (seconds or 0.0) + (datetime.now(UTC) - since).total_seconds()
    return Summary(
        path=path,
        command=path.parent.parent.name,
        method=path.parent.name,
        version=path.name,
        status=status["status"],
        started=status.get("started"),
        ended=status.get("ended"),
        seconds=seconds,
        error=status.get("error"),
        results=read_json(path / "results.json"),
    )


def all_runs(root: Path, command: str | None = None, method: str | None = None) -> list[Summary]:
    """Every run under ``root`` (of a command, of a method), the oldest first."""
    found = [
        summary(path)
        for path in root.glob(f"{command or '*'}/{method or '*'}/v*")
        if VERSION.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(
        found, key=lambda run: (run.started or "", run.command, run.method, len(run.version), run.version)
    )


def find_run(
    root: Path,
    reference: str,
    *,
    command: str | None = None,
    method: str | None = None,
    holding: str | None = None,
) -> Path:
    """The directory that a person means by ``v0003``, ``infonce/v0003``, ``pretrain/infonce/v0003``,
    ``latest``, ``pretrain/latest``, ``pretrain/infonce`` (its latest) or a path.

    Args:
        root: the output root.
        reference: as above.
        command, method: where to look, when known.
        holding: only runs with this folder, such as ``model``, count for ``latest``.

    Raises:
        ClipxError: no run fits, or several do.
    """
    direct = Path(reference).expanduser().absolute()
    if is_run(direct):
        return direct
    runs = all_runs(root, command, method)
    parts = [part for part in reference.strip("/").split("/") if part]
    version = parts.pop() if parts and (parts[-1] == "latest" or VERSION.fullmatch(parts[-1])) else "latest"
    fitting = [
        run
        for run in runs
        if parts in ([], [run.command], [run.method], [run.command, run.method])
        and (version in ("latest", run.version))
        and (holding is None or (run.path / holding).is_dir())
    ]
    if not fitting:
        hint = (
            did_you_mean(reference, [run.name for run in runs])
            if runs
            else f"there are no runs in {root} yet"
        )
        raise ClipxError(f"no run {reference!r}" + (f" with a {holding}/" if holding else ""), hint=hint)
    if len(fitting) > 1 and version != "latest":
        raise ClipxError(
            f"{reference!r} could be several runs",
            hint="say which: " + ", ".join(run.name for run in fitting),
        )
    return fitting[-1].path


def read_status(path: Path) -> dict[str, Any]:
    """The status of the run at ``path``, with a killed run recognised and its status.json mended."""
    status = read_json(path / "status.json")
    if status.get("status") not in (None, "running"):
        return status
    try:
        lock = try_lock(path / ".lock", "rb")
    except FileNotFoundError:  # being born, or stillborn
        return {**status, "status": "interrupted"}
    except OSError:  # no locks here, or not for us to open
        return _mend(path, status) if _is_dead(status) else {"status": "running", **status}
    if lock is None:
        return {"status": "running", **status}
    with lock:
        # It may have ended between our reading and our locking.
        status = read_json(path / "status.json")
        if status.get("status") == "running":
            return _mend(path, status)
        return {"status": "interrupted", **status}


def overrides_of(path: Path) -> list[str]:
    """What the user changed when the run at ``path`` began, as Hydra takes it."""
    found = read_json(path / "environment.json").get("overrides")
    return [str(each) for each in found] if isinstance(found, list) else []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, oldest first; a line cut off by a crash is left out."""
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def _mend(path: Path, status: dict[str, Any]) -> dict[str, Any]:
    last = max((entry.stat().st_mtime for entry in path.iterdir()), default=time.time())
    mended = {**status, "status": "interrupted", "error": KILLED}
    mended["ended"] = datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")
    if status.get("started"):
        since = datetime.fromisoformat(status.get("resumed") or status["started"])
        lived = (datetime.fromisoformat(mended["ended"]) - since).total_seconds()
        mended["seconds"] = round((status.get("seconds") or 0.0) + max(lived, 0.0), 3)
    with contextlib.suppress(OSError):  # another user's run, or a full disk: report it rightly all the same
        write_atomic(path / "status.json", json_text(mended))
    return mended


def _is_dead(status: dict[str, Any]) -> bool:
    """Whether the process that a status names is gone; of another machine's processes nothing is known."""
    import psutil

    return status.get("host") == socket.gethostname() and not psutil.pid_exists(int(status.get("pid") or -1))
