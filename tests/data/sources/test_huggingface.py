"""Hugging Face data sets: saved, local files, streamed; nothing here needs a network."""

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipx.data.sources import hub
from clipx.data.sources.huggingface import open_huggingface
from clipx.errors import BadSample, ClipxError


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(count: int, start: int = 0, **columns):
    from datasets import ClassLabel, Dataset
    from datasets import Image as ImageFeature

    cells = [{"bytes": png((start + number) % 256), "path": None} for number in range(count)]
    columns = columns or {"label": [number % 2 for number in range(count)]}
    data = Dataset.from_dict({"img": cells, **columns}).cast_column("img", ImageFeature())
    return data.cast_column("label", ClassLabel(names=["cat", "polar_bear"])) if "label" in columns else data


@pytest.fixture
def saved(tmp_path):
    from datasets import DatasetDict

    DatasetDict(train=dataset(30), test=dataset(6, 100)).save_to_disk(str(tmp_path / "pets"))
    return str(tmp_path / "pets")


@pytest.fixture
def files(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pets").mkdir()
    for part in range(4):
        dataset(10, part * 10).to_parquet(str(tmp_path / "pets" / f"train-{part}-of-4.parquet"))
    dataset(6, 100).to_parquet(str(tmp_path / "pets" / "test-0-of-1.parquet"))
    return str(tmp_path / "pets")


def ids(source, **share):
    if hasattr(source, "stream"):
        return [str(item) if isinstance(item, BadSample) else item["id"] for item in source.stream(**share)]
    return [source[index]["id"] for index in range(len(source))]


def test_saved_to_disk(saved):
    source = open_huggingface(saved, "test")
    assert len(source) == 6
    assert source.classes == ["cat", "polar bear"]
    assert source.name == "pets"
    example = source[1]
    assert (example["label"], example["captions"], example["id"]) == (1, [], "test#1")
    assert example["image"].getpixel((0, 0)) == (101, 0, 0)
    train, validation = (ids(open_huggingface(saved, split)) for split in ("train", "validation"))
    assert len(train) + len(validation) == 30
    assert not set(train) & set(validation)


def test_one_part_saved_to_disk(tmp_path):
    dataset(40).save_to_disk(str(tmp_path / "one"))
    parts = [
        ids(open_huggingface(str(tmp_path / "one"), split, test_fraction=0.3))
        for split in ("train", "validation", "test")
    ]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 40


def test_local_parquet_files(files):
    source = open_huggingface(files, "all")
    assert len(source) == 46
    assert source[45]["image"].getpixel((0, 0)) == (105, 0, 0)
    # A part of the data by the notation of datasets.
    sliced = open_huggingface(files, "test", splits={"test": "train[:5]"})
    assert len(sliced) == 5


def test_a_folder_of_images(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for place in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / place).write_bytes(png(7))
    source = open_huggingface("imagefolder", "test", data_dir=str(tmp_path / "photos"))
    assert source.classes == ["a", "b"]
    assert source.labels.tolist() == [0, 1]
    assert source[0]["image"].getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.parametrize(
    "cell",
    ["a", ["a", " "], [{"raw": "a", "tokens": ["x"]}], {"raw": ["a"], "sentid": [1]}],
)
def test_kinds_of_captions(tmp_path, cell):
    dataset(4, sentences=[cell] * 4).save_to_disk(str(tmp_path / "d"))
    source = open_huggingface(str(tmp_path / "d"), "all")
    assert source[0]["captions"] == ["a"]
    assert source.classes is None


def test_blank_captions_are_counted(tmp_path):
    dataset(4, text=["a", " ", None, "d"]).save_to_disk(str(tmp_path / "d"))
    source = open_huggingface(str(tmp_path / "d"), "all")
    assert len(source) == 2
    assert source.skipped == {"blank caption": 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_broken_image_is_a_bad_sample(tmp_path, monkeypatch, streaming):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "secret.png").write_bytes(png())
    cells = [
        {"bytes": b"text", "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": png(), "path": None},
        {"bytes": None, "path": "inside.png"},
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "inside.png").write_bytes(png())
    pq.write_table(pa.table({"image": cells, "text": list("abcde")}), tmp_path / "d" / "data.parquet")
    folder = str(tmp_path / "d")
    source = open_huggingface("parquet", "all", data_files=f"{folder}/data.parquet", streaming=streaming)
    items = list(source.stream()) if streaming else source.examples(range(5))
    reasons = [str(item).split(":")[0] for item in items[:3]]
    assert reasons == ["not an image", "no image", "outside the root"]
    assert [item["captions"] for item in items[3:]] == [["d"], ["e"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label_column": "species"}, "no column 'species'"),
        ({"image_column": "label"}, "'label' is ClassLabel, not an image"),
        ({"splits": {"test": "tset"}}, "no split 'tset'"),
        ({"splits": {"tets": "test"}}, "data.splits has 'tets'"),
        ({"class_names": ["x"]}, "1 names, the data has 2 classes"),
        ({"templates": ["none"]}, "does not have exactly one"),
    ],
)
def test_what_does_not_fit(saved, arguments, message):
    with pytest.raises(ClipxError, match=message):
        open_huggingface(saved, "test", **arguments)


def test_paths_that_are_not_data(tmp_path):
    with pytest.raises(ClipxError, match="does not exist"):
        open_huggingface(str(tmp_path / "none"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ClipxError, match="is a file") as error:
        open_huggingface(str(tmp_path / "x.parquet"))
    assert "data=table" in error.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipxError, match="cannot be loaded"):
        open_huggingface(str(tmp_path / "empty"))


def test_code_of_a_data_set_is_not_run(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ClipxError, match="cannot be loaded"):
        open_huggingface(str(tmp_path / "evil"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_without_a_network_the_error_is_clear_and_quick(tmp_path, monkeypatch, offline, streaming):
    import datasets
    import huggingface_hub.utils
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)

    class Dead:
        def head(self, url, timeout):
            assert timeout <= 10
            raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.utils, "get_session", Dead)
    start = time.monotonic()
    with pytest.raises(ClipxError, match=r"data\.path=clipx-tests/no-such-data cannot be loaded") as error:
        open_huggingface("clipx-tests/no-such-data", streaming=streaming)
    assert time.monotonic() - start < 10
    assert "the network" in error.value.hint
    assert constants.HF_HUB_OFFLINE is offline
    assert hub._PROBE_SECONDS <= 10


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 2), (1, 3), (2, 5)])
@pytest.mark.parametrize("split", ["train", "all"])
def test_stream_readers_share_without_duplicates_or_drops(files, world, workers, split):
    source = open_huggingface(files, split, streaming=True, shuffle=7, validation_fraction=0.0)
    shares = [
        ids(source, seed=3, epoch=1, rank=rank, world=world, worker=worker, workers=workers)
        for rank in range(world)
        for worker in range(workers)
    ]
    together = [name for share in shares for name in share]
    assert len(together) == len(set(together)) == (40 if split == "train" else 46)


def test_stream_order_and_resuming(files):
    source = open_huggingface(files, "train", streaming=True, shuffle=15)
    first = ids(source, seed=0, epoch=0)
    assert ids(source, seed=0, epoch=0) == first
    assert ids(source, seed=0, epoch=1) != first
    assert ids(source, seed=1, epoch=0) != first
    assert sorted(ids(source, seed=0, epoch=1)) == sorted(first)
    for skip in (0, 5, 17, 100):
        assert ids(source, seed=0, epoch=0, skip=skip) == first[skip:]


def test_stream_content(files):
    source = open_huggingface(files, "test", streaming=True)
    items = list(source.stream())
    assert source.classes == ["cat", "polar bear"]
    assert [item["label"] for item in items] == [0, 1] * 3
    assert items[2]["image"].getpixel((0, 0)) == (102, 0, 0)
    parts = [set(ids(open_huggingface(files, split, streaming=True))) for split in ("train", "validation")]
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) == 40
    assert ids(pickle.loads(pickle.dumps(source))) == ids(source)


def test_a_stream_inside_of_loader_workers(files):
    import torch

    class Loop(torch.utils.data.IterableDataset):
        def __init__(self, source):
            self.source = source

        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            return iter(ids(self.source, worker=info.id, workers=info.num_workers))

    source = open_huggingface(files, "all", streaming=True)
    names = list(torch.utils.data.DataLoader(Loop(source), batch_size=None, num_workers=2))
    assert sorted(names) == sorted(ids(source))


def test_fingerprints(files):
    first = open_huggingface(files, "train").fingerprint()
    assert open_huggingface(files, "train").fingerprint() == first
    assert open_huggingface(files, "test").fingerprint() != first
    stream = open_huggingface(files, "train", streaming=True).fingerprint()
    assert stream != first
    assert open_huggingface(files, "train", streaming=True).fingerprint() == stream


def test_images_match_between_stream_and_table(files):
    whole = open_huggingface(files, "test")
    streamed = list(open_huggingface(files, "test", streaming=True).stream())
    assert all(np.array_equal(whole[index]["image"], item["image"]) for index, item in enumerate(streamed))


def test_a_corrupt_shard_of_a_stream_is_one_bad_sample(files):
    source = open_huggingface(files, "all", streaming=True)
    broken = Path(files) / "train-2-of-4.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    items = list(source.stream())
    bad = [str(item) for item in items if isinstance(item, BadSample)]
    assert len(bad) == 1
    assert bad[0].startswith("corrupt shard: pets, shard 2")
    assert len(items) == 37
