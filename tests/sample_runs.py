"""Runs for the tests to read and to go on with."""

import json
from pathlib import Path

from clipx.run import Run

CONFIG = {"command": "pretrain", "method": "infonce", "seed": 3, "card": {"title": "${method}"}}


def create(root: Path, method: str = "infonce", command: str = "pretrain") -> Run:
    return Run.create(root, command, method, CONFIG, argv=["clipx", "pretrain", "labels=[cat, dog]"])


def finished(root: Path, method: str = "infonce", command: str = "pretrain") -> Run:
    run = create(root, method, command)
    with run:
        run.results({"metrics": {"top1": 0.5}})
    return run


def status_of(run: Run) -> dict:
    assert run.directory is not None
    return json.loads((run.directory / "status.json").read_text())
