"""--resume auto takes up what stopped; any resume keeps what decides the result."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import yaml
from test_cli import clipx, home, stub

from clipx.commands import resume
from clipx.config import compose, resolve
from clipx.errors import ClipxError
from clipx.run import Run
from clipx.runs import read_status

__all__ = ["clipx", "home"]
FAMILY = Path("outputs/pretrain/infonce")


def runs():
    return sorted(path.name for path in FAMILY.iterdir())


def test_a_stopped_run_of_the_same_configuration_is_taken_up(clipx):
    assert clipx("pretrain", "--resume", "auto", "seed=15").code == 130  # none yet: a new one
    assert clipx("pretrain", "--resume", "auto", "optim.lr=0.5").code == 0  # another configuration: a new one
    done = clipx("pretrain", "--resume", "auto", "seed=15")
    assert (done.code, runs()) == (130, ["v0001", "v0002"])
    assert [run.resumed for _, run in stub.seen] == [False, False, True]
    assert stub.seen[2][1].directory.name == "v0001"
    assert len(Path(FAMILY, "v0001", "command.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("seed", [13, 14])
def test_what_failed_is_tried_again(clipx, seed):
    clipx("pretrain", f"seed={seed}")
    clipx("pretrain", "--resume", "auto", f"seed={seed}")
    assert runs() == ["v0001"]
    assert stub.seen[1][1].resumed


def test_the_newest_comes_first(clipx):
    for _ in range(3):
        clipx("pretrain", "seed=15")
    clipx("pretrain", "--resume", "auto", "seed=15")
    assert stub.seen[3][1].directory.name == "v0003"


def test_a_finished_run_ends_a_job_that_starts_again_and_again(clipx):
    clipx("pretrain", "seed=1")
    done = clipx("pretrain", "--resume", "auto", "seed=1")
    assert done.code == 0
    assert "v0001 is finished: there is nothing left to do" in done.err
    assert "0.6" in done.out  # its top1, as if it had just ended
    assert (len(stub.seen), runs()) == (1, ["v0001"])
    told = json.loads(clipx("pretrain", "--resume", "auto", "seed=1", "--json").out)
    assert told["top1"] == 0.6
    assert told["run"].endswith("v0001")


def test_a_finished_run_answers_for_those_before_it(clipx):
    clipx("pretrain", "seed=15", "--resume", "auto")
    stopped = read_status(FAMILY / "v0001")
    status = {**stopped, "status": "completed"}
    clipx("pretrain", "seed=15")
    (FAMILY / "v0002" / "status.json").write_text(json.dumps(status))
    assert clipx("pretrain", "--resume", "auto", "seed=15").code == 0
    assert len(stub.seen) == 2


def test_what_does_not_change_the_result_may_change_and_is_said(clipx):
    clipx("pretrain", "seed=15", "training.log_every=5")
    done = clipx("pretrain", "--resume", "auto", "seed=15", "loader.workers=3", "training.keep=1")
    settings, run = stub.seen[1]
    assert run.directory.name == "v0001"
    assert (settings.loader.workers, settings.training.keep, settings.training.log_every) == (3, 1, 10)
    assert "loader.workers: None -> 3 from here on" in done.err
    assert "training.log_every: 5 -> 10 from here on" in done.err
    stored = yaml.safe_load((FAMILY / "v0001" / "config.yaml").read_text())
    assert stored["loader"]["workers"] is None  # what the run began with stays on record


def test_the_nearest_run_that_is_not_taken_up_is_told_apart(clipx):
    clipx("pretrain", "seed=15", "optim.lr=0.5")
    done = clipx("pretrain", "--resume", "auto", "seed=16")
    assert "v0001 stopped too, but differs: optim.lr (0.5 -> 0.002), seed (15 -> 16)" in done.err
    assert runs() == ["v0001", "v0002"]


def test_every_run_of_a_sweep_is_taken_up_or_finished(clipx):
    assert clipx("pretrain", "-m", "--resume", "auto", "seed=1,14,2").code == 2
    done = clipx("pretrain", "-m", "--resume", "auto", "seed=1,14,2")
    assert runs() == ["v0001", "v0002", "v0003"]
    assert [(config.seed, run.resumed) for config, run in stub.seen[3:]] == [(14, True)]
    assert done.out.count("completed") == 2


def _take_up(folder, began, go, found):
    settings = resolve(compose("pretrain", ["seed=15"]))
    began.put(os.getpid())
    go.wait()
    try:
        taken = resume.newest(Path(folder), settings, ["clipx"])
    except ClipxError as error:
        found.put(f"error: {error.message}")
        return
    found.put(taken.directory.name)
    time.sleep(3)  # at work, as long as the others look


def test_two_jobs_do_not_take_up_the_same_run(clipx, home):
    for _ in range(2):
        clipx("pretrain", "seed=15")
    context = multiprocessing.get_context("fork")
    began, found, go = context.Queue(), context.Queue(), context.Event()
    jobs = [
        context.Process(target=_take_up, args=(str(home / "outputs"), began, go, found)) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for _ in jobs:
        began.get(timeout=20)
    go.set()
    names = sorted(found.get(timeout=20) for _ in jobs)
    for job in jobs:
        job.join()
    assert names[1:] == ["v0001", "v0002"]
    assert names[0].startswith("error: process ")


def test_a_run_that_is_being_born_is_none(clipx, home):
    clipx("pretrain", "seed=15")
    (FAMILY / "v0001" / "config.yaml").unlink()
    clipx("pretrain", "--resume", "auto", "seed=15")
    assert not stub.seen[1][1].resumed


# --- a configuration that has changed since ---


def test_a_card_that_has_changed_since_is_no_change_of_the_run(clipx, home):
    folder = home / "own" / "method" / "pretrain"
    folder.mkdir(parents=True)
    card = "# @package _global_\ncard: {{title: Mine, year: 2026}}\nobjectives: {{}}\noptim: {{lr: {}}}\n"
    (folder / "mine.yaml").write_text(card.format(0.1))
    own = ["--method", "mine", "--config-dir", "own"]
    clipx("pretrain", *own, "seed=15")
    (folder / "mine.yaml").write_text(card.format(0.2))
    assert clipx("pretrain", *own, "seed=15", "--resume", "v0001").code == 130
    assert stub.seen[1][0].optim.lr == 0.1
    asked = clipx("pretrain", *own, "seed=15", "optim.lr=0.2", "--resume", "v0001")
    assert asked.code == 2
    assert "these differ: optim.lr (0.1 -> 0.2)" in asked.err
    # A job that is queued again asks for what its card says now.
    assert "differs: optim.lr (0.1 -> 0.2)" in clipx("pretrain", *own, "seed=15", "--resume", "auto").err


def test_only_what_changes_the_result_is_refused(clipx):
    clipx("pretrain", "seed=15")
    assert clipx("pretrain", "--resume", "v0001", "loader.workers=2", "tracker.project=mine").code == 130
    settings, _ = stub.seen[1]
    assert (settings.loader.workers, settings.tracker.project) == (2, "mine")
    done = clipx("pretrain", "--resume", "v0001", "loader.workers=2", "training.batch_size=3")
    assert "these differ: training.batch_size (128 -> 3)" in done.err
    assert "loader" not in done.err


def test_a_configuration_that_cannot_be_read(clipx):
    clipx("pretrain", "seed=15")
    (FAMILY / "v0001" / "config.yaml").write_text("a: [")
    done = clipx("pretrain", "--resume", "v0001")
    assert done.code == 2
    assert "config.yaml cannot be read" in done.err
    done = clipx("pretrain", "--resume", "auto", "seed=15")
    assert "config.yaml cannot be read" in done.err
    assert (done.code, runs()) == (130, ["v0001", "v0002"])


def test_a_run_says_how_many_processes_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    run = Run.create(tmp_path, "pretrain", "infonce", {"seed": 0})
    assert run.began_with is None
    run.end("interrupted")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Run.open(run.directory) as again:
        assert again.began_with == 3
