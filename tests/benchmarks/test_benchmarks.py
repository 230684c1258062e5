"""Every benchmark runs to its table with the micro model; times are not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="contenders are paused by signals")


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), "--quick", *map(str, arguments)]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr + found.stdout
    return found.stdout


@pytest.mark.slow
def test_throughput(tmp_path):
    pytest.importorskip("pandas")  # open_clip's reader of CSV
    printed = run("throughput.py", "--kinds", "folder", "--scenes", "0", "--json", tmp_path / "rates.json")
    rows = json.loads((tmp_path / "rates.json").read_text())
    assert [row["contender"] for row in rows] == ["clipx", "open_clip", "bare loop"]
    assert all(len(row["samples_per_second"]) == 2 for row in rows)
    assert all(rate > 0 for row in rows for rate in row["samples_per_second"])
    assert rows[0]["ratio"] == 1
    assert printed.count("aim") == 2


@pytest.mark.slow
def test_startup(tmp_path):
    printed = run("startup.py", "--only", "clipx --help", "clipx, folder", "--json", tmp_path / "times.json")
    times = json.loads((tmp_path / "times.json").read_text())
    assert list(times) == ["clipx --help", "first step done: clipx, folder"]
    assert 0 < times["clipx --help"][0]["wall"] < times["first step done: clipx, folder"][0]["wall"]
    assert all(cost["cpu"] > 0 for costs in times.values() for cost in costs)
    assert "aim" in printed


@pytest.mark.slow
def test_zeroshot(tmp_path):
    printed = run("zeroshot.py", "--json", tmp_path / "times.json")
    times = json.loads((tmp_path / "times.json").read_text())
    assert list(times) == ["clipx, first run", "clipx, second run"]
    assert "top-1" in printed


@pytest.mark.slow
def test_sweep(tmp_path):
    printed = run(
        "sweep.py", "--strengths", "0.01", "1", "--tolerance", "1e-6", "--json", tmp_path / "sweep.json"
    )
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["c"] for row in found["rows"]] == [0.01, 1.0]
    for row in found["rows"]:
        assert row["clipx"]["objective"] <= row["scikit-learn"]["objective"] * (1 + 1e-4)
    assert found["ratios"]["clipx"] == 1
    assert printed.count("aim") == 3


@pytest.mark.slow
def test_large_batches(tmp_path):
    printed = run("large_batches.py", "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["what"], row["pairs"], row["chunk"]) for row in rows] == [
        *(("infonce", 2048, 0), ("infonce", 2048, 64), ("infonce", 4096, 64)),
        *(("siglip", 2048, 0), ("siglip", 2048, 64), ("siglip", 4096, 64)),
        *(("step", 256, 0), ("step", 256, 32)),
    ]
    assert all(row["rounds"][0]["seconds"] > 0 for row in rows)
    # The matrix of logits is 16 MiB, held twice (of which a part may be in hand); a chunk is a 32nd of it.
    for whole, chunked in ((rows[0], rows[1]), (rows[3], rows[4])):
        assert whole["rounds"][0]["extra"] > 1.5 * 2**24
        assert chunked["memory_ratio"] < 0.25
    assert rows[7]["memory_ratio"] < 0.5
    assert printed.count("aim") == 4


@pytest.mark.slow
def test_objectives(tmp_path):
    printed = run("objectives.py", "siglip", "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["method"] == "siglip"
    # The same towers, and logits of one direction less: hardly another number of operations.
    assert 0.9 < row["expected"] <= 1
    assert row["ratios"][0] > 0
    assert "siglip" in printed


@pytest.mark.slow
def test_scaling(tmp_path):
    printed = run("scaling.py", "--json", tmp_path / "rounds.json")
    (rates,) = json.loads((tmp_path / "rounds.json").read_text())
    assert rates.keys() == {"1", "2"}
    assert min(rates.values()) > 0
    assert f"{rates['2'] / (2 * rates['1']):.2f}" in printed


@pytest.mark.slow
def test_checkpoints(tmp_path):
    printed = run("checkpoints.py", "--json", tmp_path / "times.json")
    found = json.loads((tmp_path / "times.json").read_text())
    assert found["bytes"] > 11e6
    assert {name: len(values) for name, values in found["seconds"].items()} == {
        "at once": 2,
        "in the background": 2,
        "until it is on disk": 2,
    }
    ratio = found["seconds"]["in the background"][1] / found["seconds"]["at once"][1]
    assert f"training is held up for {ratio:.2f} of the time" in printed


def test_slices_count_only_whole_steps_inside_a_turn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from slices import Contender, interleave

    program = (
        "import os, time, slices\n"
        "def batches():\n"
        "    while True:\n"
        "        time.sleep(0.02)\n"
        "        yield 0\n"
        "for _ in slices.Stamped(batches(), os.environ['STAMPS']): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS))
    contenders = [
        Contender(name, [sys.executable, "-c", program], tmp_path / name) for name in ("first", "second")
    ]
    try:
        interleave(contenders, rounds=2, seconds=0.4, batch_size=10, warmup=2)
        between = len(contenders[0].stamps())
        contenders[1].turn(0.2)
        assert len(contenders[0].stamps()) == between, "a paused contender goes on"
    finally:
        for contender in contenders:
            contender.end()
    for contender in contenders:
        # 10 samples in 0.02 s or somewhat more; the pauses between turns would make it a fraction of that.
        assert len(contender.rates) == 2
        assert all(100 < rate <= 510 for rate in contender.rates), contender.rates
