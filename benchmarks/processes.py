"""Run a program to its end and say what it cost."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds on the wall and seconds of processor time, of the program and all that it started."""

    wall: float
    cpu: float


def run(command: Sequence[str], **environment: str) -> tuple[str, Cost]:
    """What a program printed on stdout, and its cost.

    Raises:
        SystemExit: it failed; the end of its stderr is the message.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{found.stderr[-3000:]}")
    return found.stdout, Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def as_json(table: Mapping[str, Sequence[Cost]]) -> str:
    """Every number of a table."""
    rows = {row: [dataclasses.asdict(cost) for cost in costs] for row, costs in table.items()}
    return json.dumps(rows, indent=1) + "\n"
