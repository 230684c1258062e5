import errno
import gc
import json
import os
import subprocess

import pytest
import torch
from safetensors import SafetensorError

from clipx.errors import ClipxError
from clipx.training import checkpoints as module
from clipx.training.checkpoints import MODEL_FILE, STATE_FILE, TRAINING_FILE, Checkpoints, written_whole


def save(checkpoints, step, best=None, size=4):
    tensors = {"weight": torch.full((size,), float(step))}
    return checkpoints.save(step, tensors, {"optimizer": {"step": step}}, {"best": best, "note": "x"})


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_tensor_of_two_names_is_saved_under_both(checkpoints):
    weight = torch.arange(4.0)
    checkpoints.save(1, {"one": weight, "two": weight, "other": weight + 1}, {}, {})
    found = checkpoints.load(1).tensors
    assert {name: value.tolist() for name, value in found.items()} == {
        "one": [0, 1, 2, 3],
        "two": [0, 1, 2, 3],
        "other": [1, 2, 3, 4],
    }


def test_what_is_saved_is_loaded(checkpoints):
    assert save(checkpoints, 30) == checkpoints.folder / "step-00000030"
    step, tensors, training, state = checkpoints.newest()
    assert step == 30
    assert torch.equal(tensors["weight"], torch.full((4,), 30.0))
    assert training == {"optimizer": {"step": 30}}
    assert state == {"step": 30, "best": None, "note": "x"}


def test_memory_layout_does_not_matter_to_what_is_saved(checkpoints):
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    checkpoints.save(1, {"weight": weight}, {"average": weight}, {})
    _, tensors, training, _ = checkpoints.newest()
    assert torch.equal(tensors["weight"], weight)
    assert torch.equal(training["average"], weight)
    assert training["average"].stride() == weight.stride()


def test_nothing_is_saved_yet(checkpoints):
    assert checkpoints.steps() == []
    assert checkpoints.newest() is None
    assert checkpoints.best() is None


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step, best in enumerate([0.1, 0.9, 0.3, None, 0.9, 0.2], 1):
        save(checkpoints, step, best)
    assert checkpoints.best() == 2  # the earliest of equals
    assert checkpoints.steps() == [2, 5, 6]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "step-00000002",
        "step-00000005",
        "step-00000006",
    ]


def test_leftovers_of_killed_writers_are_removed(checkpoints):
    save(checkpoints, 1)
    for name in (".step-00000002.partial", ".step-00000001.removed"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / STATE_FILE).write_text("{}")
    (checkpoints.folder / "step-notes").mkdir()
    (checkpoints.folder / "step-notes" / STATE_FILE).write_text("{}")
    assert checkpoints.steps() == [1]
    save(checkpoints, 3)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "step-00000001",
        "step-00000003",
        "step-notes",
    ]


@pytest.mark.parametrize("file", [MODEL_FILE, TRAINING_FILE, STATE_FILE])
def test_a_damaged_newest_gives_way_aloud_to_the_one_before(checkpoints, file, capsys):
    save(checkpoints, 1)
    path = save(checkpoints, 2) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert checkpoints.newest().step == 1
    said = capsys.readouterr().err
    assert "warning:" in said
    assert f"{path.parent} cannot be read" in said
    assert checkpoints.newest(aloud=False).step == 1
    assert capsys.readouterr().err == ""


def test_a_damaged_one_does_not_outlive_the_good_one_after_it(checkpoints):
    checkpoints.keep = 1
    save(checkpoints, 4)
    checkpoints.path(6).mkdir()
    (checkpoints.path(6) / STATE_FILE).write_text("{}")
    assert checkpoints.newest().step == 4
    save(checkpoints, 5)
    assert checkpoints.steps() == [5]


def test_a_checkpoint_of_the_same_step_is_replaced(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 1, size=9)
    assert len(checkpoints.newest().tensors["weight"]) == 9


def test_code_in_a_checkpoint_is_not_run(checkpoints, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    save(checkpoints, 1)
    torch.save({"optimizer": Evil()}, checkpoints.path(1) / TRAINING_FILE)
    with pytest.raises(ClipxError, match="cannot be read"):
        checkpoints.load(1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("writer", "error"),
    [
        ("save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("torch.save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")),
        ("torch.save", KeyboardInterrupt()),
        ("json.dumps", OSError(errno.ENOSPC, "No space left on device")),
        ("sync", OSError(errno.EIO, "Input/output error")),
    ],
)
def test_a_failure_in_the_middle_leaves_the_previous_one(checkpoints, monkeypatch, writer, error):
    save(checkpoints, 1)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"{module.__name__}.{writer}", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert checkpoints.newest().step == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_full_disk_leaves_the_previous_one_and_says_what_it_is(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints")
    save(checkpoints, 1, size=1000)
    for tensors, training in (
        ({"weight": torch.zeros(1 << 20)}, {}),
        ({}, {"average": torch.zeros(1 << 20)}),
    ):
        with pytest.raises(OSError, match="No space left on device") as caught:
            checkpoints.save(2, tensors, training, {})
        assert caught.value.errno == errno.ENOSPC
        assert checkpoints.newest().step == 1
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]
    del caught  # the traceback holds the writer, and that its unlinked file
    gc.collect()
    save(checkpoints, 3, size=1000)
    assert checkpoints.newest().step == 3


def test_a_folder_is_seen_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with written_whole(target) as folder:
        (folder / "a").write_text("old")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), written_whole(target) as folder:
        (folder / "no" / "such" / "folder").write_text("new")
    assert (target / "a").read_text() == "old"
    with written_whole(target) as folder:
        (folder / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_state_that_is_no_mapping_has_no_score(checkpoints):
    save(checkpoints, 1, best=0.5)
    save(checkpoints, 2, best=0.7)
    (checkpoints.path(2) / STATE_FILE).write_text(json.dumps([1]))
    assert checkpoints.best() == 1
