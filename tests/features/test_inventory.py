import json
import os

import numpy as np
import pytest

from clipx.commands import features
from clipx.errors import ClipxError
from clipx.features.inventory import inventory, prune, remove
from clipx.features.store import Writer, content_key, obtain, open_entry


def write(rows):
    def append(writer):
        writer.append("image", np.ones((rows, 4), np.float32))
        writer.record({"done": rows})

    return append


@pytest.fixture
def store(tmp_path):
    """Two whole entries, of which one is old, an unfinished one, and what an old writer left."""
    obtain(tmp_path, {"bank": "image", "split": "test", "model": "abc"}, write(5))
    obtain(tmp_path, {"bank": "raw", "split": "train"}, write(7))
    old = tmp_path / content_key({"bank": "raw", "split": "train"})
    for path in old.iterdir():
        os.utime(path, (0, 0))
    unfinished = Writer(tmp_path / f"{content_key({'bank': 'text'})}.partial")
    write(3)(unfinished)
    unfinished.close()
    (tmp_path / f"{content_key({'bank': 'none'})}.xyz.damaged").mkdir()
    return tmp_path


def damage(store):
    path = store / content_key({"bank": "image", "split": "test", "model": "abc"}) / "image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def states(entries):
    return sorted((entry.state, entry.rows) for entry in entries)


def test_what_is_there(store):
    entries = inventory(store)
    assert states(entries) == [("leftover", 0), ("unfinished", 3), ("whole", 5), ("whole", 7)]
    whole = next(entry for entry in entries if entry.rows == 5)
    assert whole.description["bank"] == "image"
    assert whole.size > 5 * 4 * 4
    assert inventory(store / "nowhere") == []


def test_damage_is_found_only_by_looking(store, capsys):
    damage(store)
    assert states(inventory(store)) == states(inventory(store))
    assert ("damaged", 0) in states(inventory(store, verify=True))
    with pytest.raises(ClipxError, match="1 of 4 entries are damaged"):
        features.verify(store, False)
    assert "image.npy is not what was written" in capsys.readouterr().err


def test_damaged_and_left_over_go(store, capsys):
    features.verify(store, False)
    damage(store)
    features.clean(store, days=None, everything=False, dry_run=True, as_json=False)
    assert "2 entries would be removed" in capsys.readouterr().out
    assert len(inventory(store)) == 4
    features.clean(store, days=None, everything=False, dry_run=False, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 2
    assert states(inventory(store, verify=True)) == [("unfinished", 3), ("whole", 7)]


def test_old_ones_go_on_demand(store):
    gone = prune(inventory(store), older=3600.0)
    assert states(gone) == [("leftover", 0), ("whole", 7)]
    remove(gone)
    assert open_entry(store, content_key({"bank": "raw", "split": "train"})) is None
    remove(prune(inventory(store), everything=True))
    assert inventory(store) == []
    assert not list(store.glob("*.removed"))


def test_what_is_being_written_stays(store):
    fcntl = pytest.importorskip("fcntl")
    key = content_key({"bank": "text"})
    with (store / f"{key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = inventory(store)
        going = prune(entries, everything=True)
        kept = [entry for entry in entries if entry not in going]
        assert [entry.state for entry in kept] == ["encoding"]


def test_the_list_is_printed(store, capsys):
    features.listing(store, True)
    found = json.loads(capsys.readouterr().out)
    assert {entry["state"] for entry in found} == {"whole", "unfinished", "leftover"}
    features.listing(store, False)
    out = capsys.readouterr().out
    assert "4 entries" in out
    assert "image" in out
    features.listing(store / "nowhere", False)
    assert "no features" in capsys.readouterr().out
    with pytest.raises(ClipxError, match="--older -1"):
        features.clean(store, days=-1, everything=False, dry_run=True, as_json=False)
