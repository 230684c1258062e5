import errno
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from clipx.errors import ClipxError
from clipx.features import store
from clipx.features.store import Writer, content_key, default_root, obtain, open_entry

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)
WHAT = {"model": "abc", "split": "test"}


def write_ten(writer, die_after=None, log=None):
    """Append ten rows one by one, recording each; optionally die by SIGKILL after some."""
    for row in range(writer.state.get("done", 0), 10):
        writer.append("image", ROWS[row : row + 1])
        writer.extend("ids", [f"no {row}\n\u2028é"])
        if log:
            with open(log, "a") as file:
                file.write(f"{row}\n")
            time.sleep(0.005)
        if row % 2:
            writer.record({"done": row + 1})
        if die_after == row:
            for file in writer._lists.values():
                file.flush()  # as much as possible reaches the disk without being recorded
            os.kill(os.getpid(), signal.SIGKILL)


def check(entry):
    assert (entry.arrays["image"] == ROWS).all()
    assert entry.lists["ids"] == [f"no {row}\n\u2028é" for row in range(10)]
    assert entry.state == {"done": 10}


def in_child(target, *args):
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def test_an_entry_is_written_once_and_read_back(tmp_path):
    entry, fresh = obtain(tmp_path, WHAT, write_ten)
    assert fresh
    check(entry)
    again, fresh = obtain(tmp_path, WHAT, lambda writer: pytest.fail("written twice"))
    assert not fresh
    check(again)
    assert isinstance(again.arrays["image"], np.memmap)
    assert (np.load(entry.folder / "image.npy") == ROWS).all()
    meta = json.loads((entry.folder / "meta.json").read_text())
    assert meta["description"]["model"] == "abc"


def test_a_stray_write_does_not_reach_the_disk(tmp_path):
    entry, _ = obtain(tmp_path, WHAT, write_ten)
    entry.arrays["image"][:] = 0
    check(open_entry(tmp_path, content_key(WHAT)))


def test_every_part_of_the_description_is_in_the_key():
    keys = {content_key(each) for each in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": "1"})}
    assert len(keys) == 5
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})


@pytest.mark.parametrize("die_after", [0, 1, 4, 5, 9])
def test_a_killed_writer_is_gone_on_from(tmp_path, die_after):
    def doomed():
        obtain(tmp_path, WHAT, lambda writer: write_ten(writer, die_after))

    child = in_child(doomed)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert open_entry(tmp_path, content_key(WHAT)) is None
    starts = []

    def resumed(writer):
        starts.append(writer.state.get("done", 0))
        write_ten(writer)

    entry, _ = obtain(tmp_path, WHAT, resumed)
    check(entry)
    assert starts == [(die_after + 1) // 2 * 2]


def test_concurrent_writers_take_turns_and_only_one_writes(tmp_path):
    log = tmp_path / "log"

    def work():
        check(obtain(tmp_path / "store", WHAT, lambda writer: write_ten(writer, log=log))[0])

    children = [in_child(work) for _ in range(4)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert log.read_text().split() == [str(row) for row in range(10)]


def test_a_waiting_writer_takes_over_from_one_that_dies(tmp_path):
    log = tmp_path / "log"

    def doomed():
        obtain(tmp_path / "store", WHAT, lambda writer: write_ten(writer, die_after=5, log=log))

    child = in_child(doomed)
    while not log.exists():
        time.sleep(0.001)
    entry, fresh = obtain(tmp_path / "store", WHAT, lambda writer: write_ten(writer, log=log))
    child.join()
    assert fresh
    check(entry)
    assert log.read_text().split() == [str(row) for row in range(10)]


def test_without_locks_the_first_to_finish_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "fcntl", None)

    def overtaken(writer):
        write_ten(writer)
        obtain(tmp_path, WHAT, write_ten)

    entry, _ = obtain(tmp_path, WHAT, overtaken)
    check(entry)
    assert [path.name for path in tmp_path.iterdir()] == [content_key(WHAT)]


def test_a_file_system_that_refuses_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(store.fcntl, "flock", refuse)
    check(obtain(tmp_path, WHAT, write_ten)[0])
    with pytest.raises(RuntimeError, match="stop"):
        obtain(tmp_path, {"other": 1}, lambda writer: (_ for _ in ()).throw(RuntimeError("stop")))
    assert not list(tmp_path.glob("*.private"))


def cut(path):
    os.truncate(path, path.stat().st_size - 5)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["image.npy", "ids.jsonl", "meta.json"])
@pytest.mark.parametrize("damage", [cut, flip, os.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_entry_is_never_used_but_made_again(tmp_path, name, damage, caplog):
    folder = obtain(tmp_path, WHAT, write_ten)[0].folder
    damage(folder / name)
    harmless = name == "meta.json" and damage is flip and open_entry(tmp_path, content_key(WHAT)) is not None
    entry, fresh = obtain(tmp_path, WHAT, write_ten)
    assert fresh != harmless
    check(entry)
    assert not list(tmp_path.glob("*.damaged"))
    if not harmless:
        assert "damaged" in caplog.text


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_text("{}"), os.unlink])
@pytest.mark.parametrize("name", ["progress.json", "image.npy", "ids.jsonl"])
def test_a_damaged_record_of_progress_means_a_fresh_start(tmp_path, name, damage):
    partial = tmp_path / f"{content_key(WHAT)}.partial"
    with pytest.raises(RuntimeError, match="stop"):
        obtain(
            tmp_path, WHAT, lambda writer: (write_ten(writer), (_ for _ in ()).throw(RuntimeError("stop")))
        )
    damage(partial / name)
    check(obtain(tmp_path, WHAT, write_ten)[0])


def test_an_array_of_no_rows_and_rows_that_do_not_fit(tmp_path):
    def write(writer):
        writer.append("pairs", np.zeros((0, 2), dtype=np.int64))
        writer.extend("texts", [])
        with pytest.raises(ValueError, match="do not go on"):
            writer.append("pairs", np.zeros((1, 3), dtype=np.int64))

    entry, _ = obtain(tmp_path, WHAT, write)
    assert entry.arrays["pairs"].shape == (0, 2)
    assert entry.lists["texts"] == []


def test_strings_so_far(tmp_path):
    writer = Writer(tmp_path / "w")
    assert writer.strings("texts") == []
    writer.extend("texts", ["a", "b"])
    assert writer.strings("texts") == ["a", "b"]
    writer.close()


def test_a_full_disk_is_said_plainly(tmp_path):
    def full(writer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ClipxError, match="No space left") as raised:
        obtain(tmp_path, WHAT, full)
    assert "CLIPX_CACHE" in raised.value.hint


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipxError, match="cannot keep features"):
        obtain(tmp_path / "file" / "store", WHAT, write_ten)


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path))
    assert default_root() == tmp_path / "features"
    monkeypatch.delenv("CLIPX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "clipx" / "features"


def test_large_files_are_sampled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_BLOCK", 8)
    monkeypatch.setattr(store, "_BLOCKS", 4)
    path = tmp_path / "large"
    path.write_bytes(bytes(range(200)))
    before = store._checksum(path)
    content = bytearray(path.read_bytes())
    content[150] ^= 1
    path.write_bytes(content)
    assert store._checksum(path) != before
