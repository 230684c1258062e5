"""Finding runs by what people call them, and reading them whatever became of their processes."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from sample_runs import create, finished, status_of

from clipx import files
from clipx.errors import ClipxError
from clipx.run import Run
from clipx.runs import all_runs, find_run, read_status, summary

fork = multiprocessing.get_context("fork")


def _live(root, ready, orphan):
    run = create(root)
    if orphan:  # a forked loader worker that outlives the killed run
        child = fork.Process(target=time.sleep, args=(60,))
        child.start()
        ready.put((str(run.directory), child.pid))
    else:
        ready.put((str(run.directory), None))
    time.sleep(60)


@pytest.mark.parametrize("orphan", [False, True])
def test_a_killed_run_is_recognised_mended_and_can_be_resumed(tmp_path, orphan):
    ready = fork.Queue()
    process = fork.Process(target=_live, args=(tmp_path, ready, orphan))
    process.start()
    directory, child = ready.get(timeout=120)
    path = Path(directory)
    try:
        assert read_status(path)["status"] == "running"
        assert summary(path).seconds >= 0
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert json.loads((path / "status.json").read_text())["status"] == "running"
        status = read_status(path)
        assert status["status"] == "interrupted"
        assert "killed" in status["error"]
        assert status["ended"] is not None
        assert json.loads((path / "status.json").read_text()) == status
        run = Run.open(path)
        assert run.resumed
        run.end("completed")
        assert read_status(path)["status"] == "completed"
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_runs_are_found_by_what_people_write(tmp_path, monkeypatch):
    first, second = finished(tmp_path).directory, finished(tmp_path).directory
    other = finished(tmp_path, "siglip").directory
    zero = finished(tmp_path, "clip", "zeroshot").directory
    (second / "model").mkdir()
    assert find_run(tmp_path, "pretrain/infonce/v0001") == first
    assert find_run(tmp_path, "infonce/v0002") == second
    assert find_run(tmp_path, "v0002") == second
    assert find_run(tmp_path, str(first)) == first
    assert find_run(tmp_path, "v0001", method="siglip") == other
    assert find_run(tmp_path, "pretrain/infonce") == find_run(tmp_path, "infonce/latest") == second
    assert find_run(tmp_path, "latest", command="zeroshot") == zero
    assert find_run(tmp_path, "latest", holding="model") == second
    with pytest.raises(ClipxError, match="could be several") as caught:
        find_run(tmp_path, "v0001")
    assert "pretrain/siglip/v0001" in caught.value.hint
    with pytest.raises(ClipxError, match="no run") as caught:
        find_run(tmp_path, "pretrain/infonc/v0001")
    assert "did you mean 'pretrain/infonce/v0001'" in caught.value.hint
    with pytest.raises(ClipxError) as caught:
        find_run(tmp_path / "nowhere", "latest")
    assert "no runs in" in caught.value.hint
    monkeypatch.chdir(tmp_path / "pretrain")
    assert find_run(Path("/nowhere"), "infonce/v0001") == first


def test_all_runs_are_listed_the_oldest_first(tmp_path):
    finished(tmp_path)
    finished(tmp_path, "siglip")
    (tmp_path / "pretrain" / "infonce" / "v0002").mkdir()  # claimed, killed before its first file
    (tmp_path / "stray.txt").write_text("")
    runs = all_runs(tmp_path)
    assert {run.name: run.status for run in runs} == {
        "pretrain/infonce/v0001": "completed",
        "pretrain/infonce/v0002": "interrupted",
        "pretrain/siglip/v0001": "completed",
    }
    assert runs[-1].metrics == {"top1": 0.5}
    assert runs[-1].age >= 0
    assert runs[0].age is None
    assert all_runs(tmp_path, "zeroshot") == []


def test_a_damaged_status_counts_as_interrupted(tmp_path):
    run = create(tmp_path)
    run.end("completed")
    (run.directory / "status.json").write_text("{")
    assert read_status(run.directory)["status"] == "interrupted"


@pytest.mark.parametrize("supported", [True, False])
def test_without_file_locks_the_pid_decides(tmp_path, monkeypatch, supported):
    if supported:  # the module is there, the file system refuses

        def refuse(*_):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr(files.fcntl, "flock", refuse)
    else:
        monkeypatch.setattr(files, "fcntl", None)
    run = create(tmp_path)
    assert read_status(run.directory)["status"] == "running"
    known = status_of(run)
    (run.directory / "status.json").write_text(json.dumps({**known, "host": "another"}))
    assert read_status(run.directory)["status"] == "running"
    (run.directory / "status.json").write_text(json.dumps({**known, "pid": 2**22 + 1}))
    assert read_status(run.directory)["status"] == "interrupted"
    run.end("completed")
    assert read_status(run.directory)["status"] == "completed"
