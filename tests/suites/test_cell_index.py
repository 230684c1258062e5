"""What is known of cells, whatever happened to the processes that computed them."""

import json
import shutil
import subprocess
import sys

import pytest

from clipx.errors import ClipxError
from clipx.run import Run
from clipx.suites.index import CellIndex, Entry


@pytest.fixture
def index(tmp_path):
    return CellIndex(tmp_path)


def begun(index, key="k"):
    run = Run.create(index.root, "adapt", "gda", {"seed": 1})
    place = run.directory.relative_to(index.root).as_posix()
    index.note(key, Entry(place, "running"))
    return run, place


def test_nothing_is_known_of_a_cell_that_was_never_begun(index):
    assert index.find("k") is None


def test_what_is_noted_is_found(index):
    run, place = begun(index)
    run.end("completed")
    entry = Entry(place, "completed", None, 1.5, 20.0)
    index.note("k", entry)
    assert index.find("k") == entry
    assert [path.name for path in index.folder.iterdir()] == ["k.json"]


def test_a_cell_whose_run_is_gone_was_never_computed(index):
    run, place = begun(index)
    run.end("completed")
    index.note("k", Entry(place, "completed"))
    shutil.rmtree(run.directory)
    assert index.find("k") is None


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_run_that_ended_tells_what_its_pointer_was_not_told(index, status):
    run, place = begun(index)
    assert index.find("k").status == "running"
    run.end(status, "bad luck")
    found = index.find("k")
    assert (found.run, found.status, found.error) == (place, status, "bad luck")
    assert found.seconds >= 0


def test_a_run_that_was_stopped_leaves_its_cell_to_be_taken_up(index):
    run, place = begun(index)
    run.end("interrupted")
    assert index.find("k") == Entry(place, "running")


def test_a_damaged_pointer_is_no_pointer(index):
    begun(index)[0].end("completed")
    (index.folder / "k.json").write_text('{"run": "ad')
    assert index.find("k") is None
    (index.folder / "k.json").write_text(json.dumps({"strange": 1}))
    assert index.find("k") is None


CLAIM = """
import sys
from pathlib import Path
from clipx.suites.index import CellIndex
with CellIndex(Path(sys.argv[1])).claim("k") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_a_cell_is_claimed_by_one_process_until_that_ends(index):
    command = [sys.executable, "-c", CLAIM, str(index.root)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "True\n"
        with index.claim("k") as mine, index.claim("another") as free:
            assert not mine
            assert free
    finally:
        other.kill()
        other.communicate()
    with index.claim("k") as mine:
        assert mine


def test_an_index_that_cannot_be_written_is_the_users_problem(index):
    (index.root / "eval").write_text("a file")
    with pytest.raises(ClipxError, match="cannot write to"):
        index.note("k", Entry(None, "failed"))
    with pytest.raises(ClipxError, match="cannot write to"), index.claim("k"):
        pass
