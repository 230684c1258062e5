"""Runs: claimed once, written whole, honest about how they ended."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import time

import pytest
from sample_runs import create, finished, status_of

from clipx import run as run_module
from clipx.errors import ClipxError
from clipx.run import Interrupted, Run, is_main_process, output_root
from clipx.runs import read_metrics, read_status, summary

fork = multiprocessing.get_context("fork")


def test_a_new_run_holds_what_is_known_at_the_start(tmp_path):
    run = create(tmp_path)
    assert run.directory == tmp_path / "pretrain" / "infonce" / "v0001"
    assert run.writes
    assert not run.resumed
    assert "title: infonce" in (run.directory / "config.yaml").read_text()
    assert (run.directory / "command.txt").read_text() == "clipx pretrain 'labels=[cat, dog]'\n"
    known = json.loads((run.directory / "environment.json").read_text())
    assert known["packages"]["torch"]
    assert known["cpu_count"] >= 1
    assert status_of(run)["status"] == "running"
    assert status_of(run)["pid"] == os.getpid()
    assert create(tmp_path).directory == tmp_path / "pretrain" / "infonce" / "v0002"
    assert not list(tmp_path.rglob("*.tmp"))


def test_versions_go_on_behind_the_highest(tmp_path):
    (tmp_path / "pretrain" / "infonce" / "v9999").mkdir(parents=True)
    (tmp_path / "pretrain" / "infonce" / "notes").mkdir()
    assert create(tmp_path).directory.name == "v10000"


def _start(root, gate, names):
    gate.wait()
    names.put(create(root).directory.name)


def test_thirty_concurrent_starts_get_thirty_versions(tmp_path):
    gate, names = fork.Barrier(30), fork.Queue()
    processes = [fork.Process(target=_start, args=(tmp_path, gate, names)) for _ in range(30)]
    for process in processes:
        process.start()
    got = sorted(names.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert got == [f"v{number:04d}" for number in range(1, 31)]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, "completed", None),
        (ClipxError("no data", "give some"), "failed", "no data"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "interrupted", "stopped by SIGINT"),
        (Interrupted(signal.SIGTERM), "interrupted", "stopped by SIGTERM"),
    ],
)
def test_the_status_tells_how_the_block_ended(tmp_path, error, status, message):
    run = create(tmp_path)
    with contextlib.suppress(type(error)) if error else contextlib.nullcontext(), run:
        if error is not None:
            raise error
    assert status_of(run)["status"] == status
    assert status_of(run)["error"] == message
    assert status_of(run)["ended"] is not None
    assert (run.directory / "error.txt").exists() == isinstance(error, ValueError)


def test_a_run_at_work_cannot_be_resumed(tmp_path):
    run = create(tmp_path)
    with pytest.raises(ClipxError, match=f"process {os.getpid()} is working"):
        Run.open(run.directory)


def test_a_finished_run_cannot_be_resumed(tmp_path):
    with pytest.raises(ClipxError, match="is finished"):
        Run.open(finished(tmp_path).directory)
    with pytest.raises(ClipxError, match="is not a run"):
        Run.open(tmp_path)


def test_resuming_adds_up_the_seconds_and_keeps_the_start(tmp_path):
    run = create(tmp_path)
    time.sleep(0.05)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    before = status_of(run)
    again = Run.open(run.directory, argv=["clipx", "pretrain", "--resume", "v0001"])
    assert status_of(again)["status"] == "running"
    assert status_of(again)["error"] is None
    with again:
        time.sleep(0.05)
    after = status_of(again)
    assert after["started"] == before["started"]
    assert after["seconds"] >= before["seconds"] + 0.05
    lines = (run.directory / "command.txt").read_text().splitlines()
    assert lines == ["clipx pretrain 'labels=[cat, dog]'", "clipx pretrain --resume v0001"]


def test_metrics_are_appended_read_back_and_cut(tmp_path):
    import torch

    run = create(tmp_path)
    run.log(step=1, loss=torch.tensor(0.5), scale=float("nan"))
    run.log(step=2, loss=0.25)
    run.log(step=3, loss=0.125)
    assert run.metrics()[0] == {"step": 1, "loss": 0.5, "scale": None}
    run.truncate_metrics(2)
    assert [record["step"] for record in run.metrics()] == [1, 2]
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a crash in the middle of a line
    assert [record["step"] for record in read_metrics(run.directory)] == [1, 2]
    again = Run.open(run.directory)
    again.log(step=3, loss=1)
    assert [record["step"] for record in again.metrics()] == [1, 2, 3]
    assert read_metrics(tmp_path) == []


def test_results_are_merged(tmp_path):
    run = create(tmp_path)
    run.results({"skipped": {"train": 2}})
    run.results({"metrics": {"top1": float("inf")}})
    assert summary(run.directory).results == {"skipped": {"train": 2}, "metrics": {"top1": None}}


def test_folders_are_made_on_demand(tmp_path):
    run = create(tmp_path)
    assert not (run.directory / "figures").exists()
    assert run.path("figures").is_dir()
    assert run.path("figures", "confusion.png") == run.directory / "figures" / "confusion.png"
    assert not run.path("checkpoints", "step.pt").exists()
    assert (run.directory / "checkpoints").is_dir()
    run.write_text("notes/readme.md", "hello")
    assert (run.directory / "notes" / "readme.md").read_text() == "hello"


def test_a_full_disk_is_the_users_to_mend_and_the_status_still_gets_through(tmp_path, monkeypatch):
    run = create(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, "write_atomic", full)
    with pytest.raises(ClipxError, match=r"cannot write to .*v0001: No space left") as caught, run:
        run.results({"top1": 1.0})
    assert "--output-root" in caught.value.hint
    assert status_of(run)["status"] == "failed"


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_on_a_really_full_disk_the_run_says_so_and_is_marked_failed(small_disk):
    run = create(small_disk)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "fill").write_bytes(bytes(1 << 20))
    with pytest.raises(ClipxError, match="No space left") as caught, run:
        run.results({"text": "x" * 8192})
    assert str(run.directory) in caught.value.message
    assert read_status(run.directory)["status"] == "failed"
    with pytest.raises(ClipxError, match="No space left"):
        create(small_disk, "siglip")


def test_a_read_only_disk_is_named(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ClipxError, match=r"cannot write to .*pretrain/infonce: Read-only"):
        create(small_disk)


def test_an_output_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(ClipxError, match="cannot write to"):
        create(tmp_path / "outputs")


def test_other_processes_of_a_launch_share_without_writing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = create(tmp_path)
    assert run.directory is None
    assert not run.writes
    with run:
        run.log(step=1, loss=1.0)
        run.results({"top1": 1.0})
        run.truncate_metrics(0)
        run.write_text("a.txt", "")
    assert run.metrics() == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="main process"):
        run.path("figures")
    run.directory = tmp_path  # told by the main process
    assert run.path("checkpoints") == tmp_path / "checkpoints"
    assert list(tmp_path.iterdir()) == []


def test_other_processes_resume_without_taking_the_lock(tmp_path, monkeypatch):
    run = create(tmp_path)
    monkeypatch.setenv("RANK", "2")
    other = Run.open(run.directory)
    assert other.resumed
    assert not other.writes
    assert other.directory == run.directory


def test_the_rank_of_slurm_counts_only_in_a_distributed_program(monkeypatch):
    for name in ("RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert is_main_process()
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert not is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()


def test_where_runs_live(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPX_OUTPUTS", raising=False)
    assert output_root() == tmp_path / "outputs"
    monkeypatch.setenv("CLIPX_OUTPUTS", str(tmp_path / "elsewhere"))
    assert output_root() == tmp_path / "elsewhere"
    assert output_root("given") == tmp_path / "given"
