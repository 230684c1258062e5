"""``clipx eval`` around its cells: skipped, tried again, shared, killed, stopped; what it prints."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pyarrow.csv
import pytest
import stubbed
import yaml

from clipx import cli, console
from clipx.runs import all_runs, read_status

GRID = ["method=[tip-adapter,gda]", "shots=[1,4]", "seed=3"]
MORE = ["method=[tip-adapter,gda]", "shots=[1,4]", "seed=[1,2]"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty working directory and a stub in the place of adapt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPX_OUTPUTS", raising=False)
    monkeypatch.setenv("LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setattr(console, "_quiet", False)
    monkeypatch.setitem(sys.modules, "clipx.recipes.adapt", None)  # to be put back afterwards
    stubbed.install(monkeypatch.setattr)
    return tmp_path


@pytest.fixture
def clipx(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipx", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return types.SimpleNamespace(code=exit_.value.code, out=printed.out, err=printed.err)

    return call


def computed():
    """What the recipe was called for, in order."""
    path = Path(os.environ["LEDGER"])
    return [line.rsplit(" ", 1)[0] for line in path.read_text().splitlines()] if path.exists() else []


def completed(root):
    return [run for run in all_runs(root / "outputs", "adapt") if run.status == "completed"]


def table(folder):
    """The tidy table without what differs from run to run."""
    found = pyarrow.csv.read_csv(folder / "results.csv").drop_columns(["seconds", "peak_memory_mb", "run"])
    return found.to_pylist()


def test_a_grid_becomes_runs_and_one_report(clipx, home):
    done = clipx("eval", *GRID)
    assert done.code == 0, done.err
    runs = completed(home)
    assert len(runs) == 4
    assert sorted(computed()) == ["gda 1 3", "gda 4 3", "tip-adapter 1 3", "tip-adapter 4 3"]
    report = home / "outputs" / "eval" / "ad-hoc" / "v0001"
    rows = table(report)
    assert [(row["method"], row["shots"], row["seed"]) for row in rows[:3]] == [
        ("tip-adapter", 1, 3),
        ("tip-adapter", 4, 3),
        ("gda", 1, 3),
    ]
    assert rows[0]["top1"] == pytest.approx(0.1113)
    assert read_status(report)["status"] == "completed"
    assert "report  outputs/eval/ad-hoc/v0001" in done.out
    first = runs[0].path
    command = f"clipx adapt --method {first.parent.name} seed=3 shots=1\n"
    assert (first / "command.txt").read_text() == command
    assert json.loads((first / "environment.json").read_text())["overrides"][1:] == ["seed=3", "shots=1"]


def test_what_is_finished_is_not_made_again_whichever_suite_asks(clipx, home):
    clipx("eval", *GRID)
    first = computed()
    again = clipx("eval", *GRID)
    assert again.code == 0
    assert computed() == first
    assert "report  outputs/eval/ad-hoc/v0001" in again.out
    assert not (home / "outputs" / "eval" / "ad-hoc" / "v0002").exists()
    other = clipx("eval", "suite=adapters", "method=[gda,zero-shot]", "shots=4", "seed=2,3")
    assert other.code == 0, other.err
    assert computed()[len(first) :] == ["gda 4 2", "zero-shot 4 2", "zero-shot 4 3"]
    assert "3 cells to compute, 1 finished" in other.err


def test_a_report_is_made_anew_when_it_would_change(clipx, home):
    clipx("eval", *GRID)
    clipx("eval", *GRID, "baseline=gda")
    (home / "outputs" / "eval" / "ad-hoc" / "v0002" / "results.csv").unlink()
    assert "v0003" in clipx("eval", *GRID, "baseline=gda").out
    assert len(computed()) == 4


def test_a_second_time_loads_nothing_heavy(clipx, home):
    clipx("eval", *GRID)
    code = "from clipx.cli import main; import sys\ntry: main()\nfinally: print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "eval", *GRID], capture_output=True, text=True)
    assert "report  outputs/eval/ad-hoc/v0001" in done.stdout, done.stderr
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "open_clip", "sklearn", "pyarrow"}


def test_a_run_that_was_deleted_is_made_again(clipx, home):
    clipx("eval", *GRID)
    gone = home / "outputs" / "adapt" / "gda" / "v0002"
    cell = f"gda {yaml.safe_load((gone / 'config.yaml').read_text())['shots']} 3"
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    before = computed()
    assert clipx("eval", *GRID).code == 0
    assert len(computed()) == len(before) + 1
    assert computed()[-1] == cell


def test_a_cell_that_fails_is_told_and_stops_no_other(clipx, home, monkeypatch):
    grid = ["method=gda", "shots=4", "seed=1,13,2"]
    done = clipx("eval", *grid)
    assert done.code == 1
    assert [line.split()[-1] for line in computed()] == ["1", "13", "2"]
    assert "1 cell failed" in done.out
    assert "  gda seed=13: ValueError: bad luck" in done.out
    assert done.err.count("bad luck") == 1
    assert clipx("eval", *grid).code == 1
    assert len(computed()) == 3  # not again without --retry
    assert clipx("eval", *grid, "--retry").code == 1
    assert len(computed()) == 4
    monkeypatch.setenv("MERCY", "1")
    done = clipx("eval", *grid, "--retry")
    assert done.code == 0
    assert len(computed()) == 5
    assert "failed" not in done.out
    rows = table(home / "outputs" / "eval" / "ad-hoc" / "v0003")
    assert [row["status"] for row in rows] == ["completed"] * 3


def test_quiet_json_and_show_config(clipx, home):
    shown = clipx("eval", *GRID, "--show-config")
    assert shown.out.count("clipx adapt --method") == 4
    assert not (home / "outputs").exists()
    assert clipx("eval", *GRID, "--quiet").out == f"{home}/outputs/eval/ad-hoc/v0001\n"
    done = clipx("eval", *GRID, "--json")
    result = json.loads(done.out)
    assert result["run"] == f"{home}/outputs/eval/ad-hoc/v0001"
    assert [row["status"] for row in result["rows"]] == ["completed"] * 4
    assert result["rows"][0]["metrics"]["top1"] == pytest.approx(0.1113)


WRONG = [
    (["suite=adaptors"], "no choice 'adaptors' for suite"),
    (["shots=[]"], "leaves nothing to run"),
    (["method=[gda,tip]"], "no method 'tip' for adapt"),
    (["shotz=1,2"], "no key 'shotz'"),
    (["shots"], "'shots' is not an override"),
    (["launcher=joblip"], "joblip"),
    (["method=gda", "--method", "gda"], "two lists of methods"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: str(value))
def test_what_is_wrong_is_told_before_the_first_cell(clipx, home, arguments, message):
    done = clipx("eval", "seed=1,2", *arguments)
    assert done.code == 2
    assert f"error: {message}" in done.err or message in done.err.splitlines()[0]
    assert computed() == []
    assert "Traceback" not in done.err


def test_a_launcher_that_is_not_installed_names_its_extra(clipx, monkeypatch):
    monkeypatch.setattr("clipx.launch.importlib.util.find_spec", lambda name: None)
    done = clipx("eval", *GRID, "launcher=submitit_slurm")
    assert done.code == 2
    assert 'pip install "clipx[slurm]"' in done.err


def start(*arguments, seconds=0.0):
    """``clipx eval`` in a process of its own; the stub is in it, and in all that it starts."""
    folder = Path("startup")
    folder.mkdir(exist_ok=True)
    here = str(Path(stubbed.__file__).parent)
    code = f"import sys\nsys.path.insert(0, {here!r})\nimport stubbed\nstubbed.install()"
    (folder / "sitecustomize.py").write_text(code)
    environment = {**os.environ, "CELL_SECONDS": str(seconds), "PYTHONPATH": str(folder.absolute())}
    return subprocess.Popen(
        [sys.executable, "-m", "clipx", "eval", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(count, process, limit=60):
    end = time.monotonic() + limit
    while len(computed()) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_at_random_it_ends_with_the_same_table_and_no_cell_twice(clipx, home, tmp_path_factory):
    rng = random.Random(0)
    for _ in range(4):
        process = start(*MORE, seconds=0.2)
        try:
            wait_for(len(computed()) + rng.randint(1, 2), process)
            time.sleep(rng.uniform(0, 0.3))
        finally:
            process.kill()
            process.communicate()
        if len(completed(home)) == 8:
            break
    known = {run.name for run in completed(home)}
    assert known
    assert clipx("eval", *MORE).code == 0
    runs = completed(home)
    assert len(runs) == 8
    assert known <= {run.name for run in runs}
    (report,) = [run.path for run in all_runs(home / "outputs", "eval") if run.status == "completed"]
    elsewhere = tmp_path_factory.mktemp("undisturbed")
    clipx("eval", *MORE, "--output-root", str(elsewhere))
    assert table(report) == table(elsewhere / "eval" / "ad-hoc" / "v0001")


def test_two_at_once_share_the_work(home):
    both = [start(*MORE, seconds=0.2) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(completed(home)) == 8
    assert len(computed()) == 8
    reports = sorted((home / "outputs" / "eval" / "ad-hoc").iterdir())
    assert len(reports) == 2
    assert table(reports[0]) == table(reports[1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_costs_the_running_cell_at_most(clipx, home, signum):
    process = start(*MORE, seconds=0.3)
    wait_for(2, process)
    time.sleep(0.15)  # the third is under way
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert f"stopped by {signum.name}" in err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    (report,) = all_runs(home / "outputs", "eval")
    assert report.status == "interrupted"
    before = {run.name for run in completed(home)}
    assert 2 <= len(before) <= 4
    assert clipx("eval", *MORE).code == 0
    assert before <= {run.name for run in completed(home)}
    # The cell that was stopped was taken up in its own run, so that nothing interrupted is left.
    assert len(all_runs(home / "outputs", "adapt")) == 8


def test_processes_share_the_cells(home):
    process = start(*MORE, "jobs=2", seconds=1.5)  # a process takes seconds to start
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.splitlines().count("8 cells") == 1
    assert sorted(computed()) == sorted(set(computed()))
    runs = completed(home)
    assert len(runs) == 8
    assert len({read_status(run.path)["pid"] for run in runs}) == 2
    (report,) = (home / "outputs" / "eval" / "ad-hoc").iterdir()
    assert read_status(report)["status"] == "completed"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(home, signum):
    process = start(*MORE, "jobs=2", seconds=2)
    wait_for(3, process)
    process.send_signal(signum)
    process.communicate(timeout=60)  # the pipes close when the last that holds them has ended
    before = computed()
    assert len(before) <= 4
    time.sleep(2.5)
    assert computed() == before


def test_jobs_of_a_launcher_share_the_cells(home):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = start(*MORE, "launcher=joblib", "jobs=2", seconds=0.2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "report  outputs/eval/ad-hoc/v0001" in out
    assert err.splitlines().count("8 cells") == 1
    assert sorted(computed()) == sorted(set(computed()))
    assert len(completed(home)) == 8
    assert [entry.name for entry in (home / "outputs").iterdir() if entry.name.startswith(".")] == []
