"""A queue that starts a run again and again, and kills of one and of two processes: the end is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "endurance.py"


@pytest.mark.slow
def test_runs_that_are_stopped_and_started_again_end_as_if_they_had_not_been():
    command = [sys.executable, str(SCRIPT), "--restarts", "3", "--kills", "2", "--steps", "12", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["tensors"] > 100
    for name, most in (("queue", 3), ("kills, 1", 1), ("kills, 2", 1)):
        assert 1 <= len(found[name]["stops"]) <= most  # a slow machine may let a run end before its kill
        assert found[name]["differences"] == []
