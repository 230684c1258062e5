"""Shards are shared out exactly, resume exactly, and survive damage."""

import io
import json
import pickle
import sys
import tarfile

import pytest
from PIL import Image

from clipx.data.sources.webdataset import WebDataset
from clipx.errors import BadSample, ClipxError

pytest.importorskip("webdataset", reason="the optional package webdataset is not installed")


def jpeg(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, samples) -> None:
    with tarfile.open(path, "w") as archive:
        for key, files in samples:
            for ending, content in files.items():
                content = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def pairs(start: int, count: int):
    return [(f"{n:05d}", {"png": jpeg(n % 256), "txt": f"number {n}"}) for n in range(start, start + count)]


@pytest.fixture
def shards(tmp_path):
    for shard in range(5):
        write(tmp_path / f"{shard:03d}.tar", pairs(shard * 12, 12))
    return tmp_path


def ids(source, **share) -> list[str]:
    return [str(item) if isinstance(item, BadSample) else item["id"] for item in source.stream(**share)]


def test_samples_are_examples(shards):
    source = WebDataset(str(shards / "{000..004}.tar"), "all")
    items = list(source.stream())
    assert len(items) == 60
    assert items[7]["captions"] == ["number 7"]
    assert items[7]["image"].getpixel((0, 0)) == (7, 0, 0)
    assert (items[7]["label"], items[7]["id"]) == (-1, "000/00007")
    assert source.classes is None
    assert source.name == shards.name


@pytest.mark.parametrize("urls", ["{}/*.tar", "{}", "{}/{{000..004}}.tar", "pipe:cat {}/{{000..004}}.tar"])
def test_ways_to_name_shards(shards, urls):
    source = WebDataset(urls.format(shards), "all")
    assert [item["captions"] for item in source.stream()] == [[f"number {n}"] for n in range(60)]


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 2), (1, 5), (2, 3), (3, 4), (20, 5)])
@pytest.mark.parametrize("split", ["train", "all"])
def test_readers_share_without_duplicates_or_drops(shards, world, workers, split):
    source = WebDataset(str(shards), split, shuffle=7, test_fraction=0.0, validation_fraction=0.0)
    shares = [
        ids(source, seed=3, epoch=1, rank=rank, world=world, worker=worker, workers=workers)
        for rank in range(world)
        for worker in range(workers)
    ]
    together = [name for share in shares for name in share]
    assert len(together) == len(set(together)) == 60


def test_a_thousand_shards_are_shared_out_among_processes_and_workers(tmp_path):
    for number in range(1000):
        write(tmp_path / f"{number:04}.tar", pairs(number, 1))
    source = WebDataset(str(tmp_path), "all")
    found = [
        ids(source, rank=rank, world=3, worker=worker, workers=2) for rank in range(3) for worker in range(2)
    ]
    assert {len(each) for each in found} == {166, 167}
    assert len({one for each in found for one in each}) == sum(map(len, found)) == 1000


def test_shards_drawn_with_replacement(tmp_path):
    for number in range(60):
        write(tmp_path / f"{number:02}.tar", pairs(2 * number, 2))
    settings = {"validation_fraction": 0, "test_fraction": 0, "shuffle": 4}
    drawn = WebDataset(str(tmp_path), "train", resampled=True, **settings)
    place = {"world": 2, "workers": 2, "seed": 1}
    one, other = (ids(drawn, rank=0, worker=worker, **place) for worker in range(2))
    assert len(one) == len(other) == 30
    assert one != other
    assert one == ids(drawn, rank=0, worker=0, **place)
    assert one[7:] == ids(drawn, rank=0, worker=0, skip=7, **place)
    assert one != ids(drawn, rank=0, worker=0, epoch=1, **place)
    # Of 60 drawn with replacement about 1/e are missing, and some come twice.
    alone = ids(drawn, seed=3)
    assert len(alone) == 120
    assert 60 < len(set(alone)) < 96
    held_out = ids(
        WebDataset(str(tmp_path), "validation", resampled=True, validation_fraction=1, test_fraction=0)
    )
    assert len(held_out) == len(set(held_out)) == 120


def test_order_depends_on_seed_and_epoch_alone(shards):
    source = WebDataset(str(shards), "train", shuffle=20)
    first = ids(source, seed=0, epoch=0)
    assert ids(WebDataset(str(shards), "train", shuffle=20), seed=0, epoch=0) == first
    assert ids(source, seed=0, epoch=1) != first
    assert ids(source, seed=1, epoch=0) != first
    assert sorted(ids(source, seed=0, epoch=1)) == sorted(first)
    # Whatever is evaluated is read in order.
    assert ids(WebDataset(str(shards), "all"), seed=5) == ids(WebDataset(str(shards), "all"), seed=6)


@pytest.mark.parametrize("skip", [0, 1, 17, 29, 60, 1000])
def test_resuming_goes_on_where_it_stopped(shards, skip, monkeypatch):
    source = WebDataset(str(shards), "train", shuffle=9, test_fraction=0.0, validation_fraction=0.0)
    share = {"seed": 1, "epoch": 2, "rank": 0, "world": 1, "worker": 1, "workers": 2}
    whole = ids(source, **share)
    decoded = []
    real = WebDataset._example
    monkeypatch.setattr(WebDataset, "_example", lambda self, sample: decoded.append(1) or real(self, sample))
    assert ids(source, skip=skip, **share) == whole[skip:]
    assert len(decoded) == max(len(whole) - skip, 0)


def test_splits_by_hash_and_by_shards(shards):
    parts = {
        split: set(ids(WebDataset(str(shards), split, test_fraction=0.3)))
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == 60
    assert len(set().union(*parts.values())) == 60
    assert len(parts["test"]) > 5
    own = {"train": str(shards / "{000..003}.tar"), "test": str(shards / "004.tar")}
    assert len(ids(WebDataset(split="test", **own))) == 12
    cut = [set(ids(WebDataset(split=split, **own))) for split in ("train", "validation")]
    assert len(cut[0]) + len(cut[1]) == 48
    assert not cut[0] & cut[1]
    with pytest.raises(ClipxError, match="no train split, only test"):
        WebDataset(test=own["test"])


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut inside a file":
        content = content[: 512 * 17 + 50]
    elif how == "cut inside a header":
        content = content[: 512 * 16 + 50]
    elif how == "header overwritten":
        content[512 * 16 : 512 * 17] = b"\xaa" * 512
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut inside a file", "cut inside a header", "header overwritten"])
def test_the_rest_of_a_corrupt_shard_is_one_bad_sample(shards, how):
    damage(shards / "001.tar", how)
    items = list(WebDataset(str(shards), "all").stream())
    bad = [item for item in items if isinstance(item, BadSample)]
    assert len(bad) == 1
    assert str(bad[0]).startswith(f"corrupt shard: {shards / '001.tar'}: ")
    good = [item["captions"][0] for item in items if not isinstance(item, BadSample)]
    assert good == [f"number {n}" for n in (*range(12), 12, 13, 14, *range(24, 60))]


@pytest.mark.parametrize("content", [b"", b"this is a text file, not a shard\n" * 50])
def test_what_is_not_a_shard(shards, content):
    (shards / "001.tar").write_bytes(content)
    items = list(WebDataset(str(shards), "all").stream())
    assert [str(item)[:13] for item in items if isinstance(item, BadSample)] == ["corrupt shard"]
    assert len(items) == 49


def test_a_corrupt_shard_is_reported_once_by_its_readers(shards):
    damage(shards / "001.tar", "header overwritten")
    source = WebDataset(str(shards / "001.tar"), "all")
    items = [name for worker in range(3) for name in ids(source, worker=worker, workers=3)]
    assert sum(name.startswith("corrupt shard") for name in items) == 1
    assert len(items) == 4


def test_a_failing_command_is_a_bad_sample(shards):
    (bad,) = WebDataset(f"pipe:cat {shards}/none.tar 2>/dev/null", "all").stream()
    assert isinstance(bad, BadSample)


def test_keys_of_image_caption_and_label(tmp_path):
    write(
        tmp_path / "a.tar",
        [
            (
                "dir.x/1",
                {"JPG": jpeg(), "json": json.dumps({"caption": "from json", "url": "u"}), "cls": "1"},
            ),
            ("dir.x/2", {"webp": jpeg(), "caption": "  spaces ", "cls": "cat"}),
            ("dir.x/3", {"png": jpeg(), "cls": "0\n"}),
            ("dir.x/4", {"png": jpeg(), "cls": "2"}),
            ("dir.x/5", {"png": jpeg(), "txt": "  "}),
            ("dir.x/6", {"txt": "no image"}),
            ("dir.x/7", {"jpg": b"not an image", "txt": "x"}),
            ("dir.x/8", {"png": jpeg(), "json": "{"}),
        ],
    )
    source = WebDataset(str(tmp_path / "a.tar"), "all", class_names=["cat", "dog"])
    items = list(source.stream())
    assert [item["captions"] for item in items[:3]] == [["from json"], ["spaces"], []]
    assert [item["label"] for item in items[:3]] == [1, 0, 0]
    assert items[0]["id"] == "a/dir.x/1"
    reasons = [str(item).split(":")[0] for item in items[3:]]
    assert reasons == ["label out of range", "blank caption", "no image", "not an image", "damaged json"]


def test_chosen_keys(tmp_path):
    fields = json.dumps({"caption": "short", "recaption": "long"})
    write(
        tmp_path / "a.tar",
        [("1", {"a.png": jpeg(1), "b.png": jpeg(2), "json": fields, "txt": "raw", "kind": "1"})],
    )
    arguments = {
        "image_key": "b.png",
        "caption_key": "recaption",
        "label_key": "kind",
        "class_names": ["x", "y"],
    }
    (item,) = WebDataset(str(tmp_path / "a.tar"), "all", **arguments).stream()
    assert item["image"].getpixel((0, 0)) == (2, 0, 0)
    assert (item["captions"], item["label"]) == (["long"], 1)


def test_class_names_beside_the_shards(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\nice bear\n")
    write(tmp_path / "test" / "0.tar", [("s", {"png": jpeg(), "cls": "1"})])
    source = WebDataset(str(tmp_path / "test" / "0.tar"), "all")
    assert source.classes == ["cat", "ice bear"]
    assert next(source.stream())["label"] == 1


def test_sizes(shards):
    assert WebDataset(str(shards), "all").size is None
    assert WebDataset(str(shards), "train", size=9).size == 9
    (shards / "sizes.json").write_text(json.dumps({f"{n:03d}.tar": 12 for n in range(5)}))
    assert WebDataset(str(shards), "all").size == 60
    assert WebDataset(str(shards), "test").size == 6
    assert WebDataset(test=str(shards / "00{1,2}.tar"), split="test").size == 24
    (shards / "sizes.json").unlink()
    (shards / "_size").write_text("60\n")
    assert WebDataset(str(shards), "all").size == 60
    assert WebDataset(str(shards / "000.tar"), "all").size is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs data.urls"),
        ({"urls": "{000..004}.tar"}, "no shard .*000.tar"),
        ({"urls": "*.tar"}, "no shard"),
        ({"urls": "{000..004.tar"}, "unbalanced braces"),
        ({"urls": []}, "needs data.urls"),
        ({"urls": "a.tar", "train": "b.tar"}, "both given"),
        ({"urls": "empty"}, "holds no .tar file"),
    ],
)
def test_shards_that_are_not_there(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipxError, match=message):
        WebDataset(**arguments)


def test_one_missing_shard_of_many(shards):
    (shards / "003.tar").unlink()
    with pytest.raises(ClipxError, match=r"003\.tar"):
        WebDataset(str(shards / "{000..004}.tar"))


def test_without_the_package(shards, monkeypatch):
    import importlib.util

    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ClipxError, match="webdataset is not installed") as error:
        WebDataset(str(shards))
    assert "clipx[webdataset]" in error.value.hint


def test_it_reaches_worker_processes_and_has_a_fingerprint(shards):
    source = WebDataset(str(shards), "train", shuffle=5)
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)
    first = source.fingerprint()
    assert WebDataset(str(shards), "train", shuffle=5).fingerprint() == first
    assert WebDataset(str(shards), "test").fingerprint() != first
    write(shards / "000.tar", pairs(0, 3))
    assert WebDataset(str(shards), "train", shuffle=5).fingerprint() != first
