"""Files: whole or not there, and locked by one process at a time."""

import errno
import os

import pytest

from clipx.errors import ClipxError
from clipx.files import (
    append_line,
    drop_partial_line,
    explained,
    hold,
    json_text,
    let_go,
    read_json,
    replacing,
    write_atomic,
)


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "status.json"
    write_atomic(target, "old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    target = tmp_path / "metrics.jsonl"
    drop_partial_line(target)
    assert not target.exists()
    append_line(target, "ein Löwe")
    append_line(target, "2")
    drop_partial_line(target)
    assert target.read_text(encoding="utf-8") == "ein Löwe\n2\n"
    with target.open("a") as file:
        file.write("3, but n")
    drop_partial_line(target)
    assert target.read_text(encoding="utf-8") == "ein Löwe\n2\n"


def test_json_that_cannot_be_read_is_empty(tmp_path):
    target = tmp_path / "results.json"
    assert read_json(target) == {}
    for text in ("{", "[1, 2]", "null"):
        target.write_text(text)
        assert read_json(target) == {}
    target.write_text(json_text({"top1": 0.5, "loss": float("nan")}))
    assert read_json(target) == {"top1": 0.5, "loss": None}


def test_a_lock_is_held_by_one_until_it_lets_go(tmp_path):
    pytest.importorskip("fcntl")
    first = hold(tmp_path / "lock")
    assert first is not None
    assert hold(tmp_path / "lock") is None
    let_go(first)
    second = hold(tmp_path / "lock")
    assert second is not None
    let_go(second)


def test_an_error_of_the_disk_names_the_folder(tmp_path):
    with pytest.raises(ClipxError, match=r"cannot write to .*: No space left") as caught, explained(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(tmp_path) in caught.value.message
    assert "--output-root" in caught.value.hint


def test_a_file_that_is_being_replaced_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with replacing(path) as fresh:
        fresh.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"

    def fail():
        with replacing(path) as fresh:
            fresh.write_bytes(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["weights.bin"]


def test_a_replaced_file_is_as_readable_as_any(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_atomic(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
