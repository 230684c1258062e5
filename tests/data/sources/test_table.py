"""Tables of every kind, their splits, captions and labels, and everything that can be wrong with them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipx.data.sources import arrow
from clipx.data.sources.table import Table
from clipx.errors import BadSample, ClipxError

CIFAR10 = Path(__file__).parents[4] / "shared" / "data" / "cifar10"


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def images(count: int) -> list[dict]:
    return [{"bytes": png(number), "path": None} for number in range(count)]


def parquet(path: Path, names: list[str] | None = None, **columns) -> str:
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    return tmp_path


def test_hugging_face_parquet(tmp_path):
    path = parquet(tmp_path / "pets.parquet", ["cat", "polar_bear"], image=images(3), label=[1, 0, 1])
    source = Table(path, "all")
    assert source.classes == ["cat", "polar bear"]
    assert source.labels.tolist() == [1, 0, 1]
    assert source.name == "pets"
    example = source[2]
    assert (example["label"], example["captions"], example["id"]) == (1, [], "pets.parquet#2")
    assert example["image"].getpixel((0, 0)) == (2, 0, 0)


def write(path: Path, table: pa.Table) -> None:
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".feather":
            pyarrow.feather.write_feather(table, path)
        case ".arrow":
            with pa.ipc.new_stream(str(path), table.schema) as stream:
                stream.write_table(table)
        case ".csv":
            pyarrow.csv.write_csv(table, path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow", "csv", "jsonl"])
def test_every_kind_of_file_gives_the_same(photos, ending):
    columns = {"file_name": ["0.png", "1.png", "2.png"], "title": ["a", " b ", "7"], "class": ["x", "y", "x"]}
    write(photos / f"list.{ending}", pa.table(columns))
    source = Table(str(photos / f"list.{ending}"), "all")
    assert source.classes == ["x", "y"]
    assert source.labels.tolist() == [0, 1, 0]
    assert [source[index]["captions"] for index in range(3)] == [["a"], ["b"], ["7"]]
    assert source[1]["image"].getpixel((0, 0)) == (1, 0, 0)
    assert source[1]["id"] == "1.png"


def test_rows_of_one_image_are_one_example(photos):
    parquet(photos / "t.parquet", image=["0.png", "1.png", "0.png"], caption=["a", "b", "c"])
    source = Table(str(photos / "t.parquet"), "all")
    assert [source[index]["captions"] for index in range(len(source))] == [["a", "c"], ["b"]]
    assert source.classes is None
    assert source[0]["label"] == -1


def test_a_list_of_captions_and_plain_bytes(tmp_path):
    path = parquet(tmp_path / "t.parquet", jpg=[png(), png()], captions=[["a", " "], ["b", "c"]])
    source = Table(path, "all")
    assert [source[0]["captions"], source[1]["captions"]] == [["a"], ["b", "c"]]


def test_splits_by_argument_by_file_name_and_by_hash(tmp_path):
    for name, count in (("train-00000-of-00002", 30), ("train-00001-of-00002", 30), ("test", 5)):
        parquet(tmp_path / f"{name}.parquet", image=images(count), label=[n % 2 for n in range(count)])
    one, two, test = (
        str(tmp_path / f"{n}.parquet") for n in ("train-00000-of-00002", "train-00001-of-00002", "test")
    )
    for arguments in (
        {"path": str(tmp_path)},
        {"path": str(tmp_path / "*.parquet")},
        {"train": [one, two], "test": test},
    ):
        parts = {split: Table(split=split, **arguments) for split in ("train", "validation", "test")}
        names = {split: {part[i]["id"] for i in range(len(part))} for split, part in parts.items()}
        assert len(parts["test"]) == 5
        assert len(parts["train"]) + len(parts["validation"]) == 60
        assert 1 <= len(parts["validation"]) <= 20
        assert not names["train"] & names["validation"]
        assert len(Table(split="all", **arguments)) == 65
    lone = {split: len(Table(one, split, test_fraction=0.3)) for split in ("train", "validation", "test")}
    assert sum(lone.values()) == 30
    assert lone["test"] > 2


def test_numbers_and_texts_are_numbered_alike_in_every_split(tmp_path):
    train = parquet(tmp_path / "train.parquet", image=images(3), label=["b", "a", "c"])
    test = parquet(tmp_path / "test.parquet", image=images(2), label=["c", "c"])
    assert Table(train=train, test=test, split="test").labels.tolist() == [2, 2]
    path = parquet(tmp_path / "n.parquet", image=images(4), label=[10, 2, 2, 7])
    assert Table(path, "all").classes == ["2", "7", "10"]
    assert Table(path, "all").labels.tolist() == [2, 0, 0, 1]


def test_class_names_of_the_user(tmp_path):
    numbers = parquet(tmp_path / "n.parquet", image=images(3), label=[2, 0, 2])
    source = Table(numbers, "all", class_names=["a", "b", "c"])
    assert (source.classes, source.labels.tolist()) == (["a", "b", "c"], [2, 0, 2])
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    assert Table(numbers, "all", class_names="names.txt").classes == ["a", "b", "c"]
    assert Table(numbers, "all", class_names={"0": "nought"}).classes == ["nought", "2"]
    texts = parquet(tmp_path / "t.parquet", image=images(2), label=["cat", "bear"])
    ordered = Table(texts, "all", class_names=["dog", "cat", "bear"])
    assert ordered.labels.tolist() == [1, 2]
    assert Table(texts, "all", class_names={"cat": "kitten"}).classes == ["bear", "kitten"]
    with pytest.raises(ClipxError, match="has 1 names, the data has 2 classes"):
        Table(texts, "all", class_names=["x"])


@pytest.mark.parametrize("value", [5, -2])
def test_labels_outside_of_the_classes_are_an_error(tmp_path, value):
    path = parquet(tmp_path / "t.parquet", ["a", "b"], image=images(3), label=[0, value, 1])
    with pytest.raises(ClipxError, match=rf"row 1 has the label {value}, not one of the 2 classes") as error:
        Table(path, "all")
    assert "0 to 1" in error.value.hint
    plain = parquet(tmp_path / "p.parquet", image=images(3), label=[0, value, 1])
    with pytest.raises(ClipxError, match=f"row 1 has the label {value}"):
        Table(plain, "all", class_names=["a", "b"])


def test_rows_without_label_caption_or_image_are_counted(tmp_path):
    path = parquet(
        tmp_path / "t.parquet",
        image=[*images(4), None],
        caption=["a", "  ", None, None, "x"],
        label=[0, 1, None, -1, 1],
    )
    source = Table(path, "all")
    assert [source[index]["id"] for index in range(len(source))] == ["t.parquet#0", "t.parquet#1"]
    assert source.skipped == {"blank caption": 2, "no image": 1}
    assert source[1]["captions"] == []
    labelled = parquet(tmp_path / "l.parquet", image=images(3), label=[0, None, 1])
    assert Table(labelled, "all").skipped == {"no label": 1}


def test_paths_do_not_leave_the_folder(photos):
    (photos / "inside").mkdir()
    (photos / "inside" / "1.png").write_bytes(png())
    (photos / "inside" / "2.png").write_bytes(png())
    (photos / "inside" / "link.png").symlink_to(photos / "0.png")
    paths = ["1.png", "2.png", "../0.png", "link.png", "1.png"]
    parquet(photos / "inside" / "t.parquet", image=paths, caption=["a"] * 5)
    source = Table(str(photos / "inside" / "t.parquet"), "all")
    assert source.skipped == {"outside the root": 2}
    assert [source[index]["id"] for index in range(len(source))] == ["1.png", "2.png"]
    # The struct's path is bounded as well, when it is all there is.
    struct = [{"bytes": None, "path": "../0.png"}, {"bytes": None, "path": "1.png"}]
    source = Table(parquet(photos / "inside" / "s.parquet", image=struct, caption=["a", "b"]), "all")
    with pytest.raises(BadSample, match=r"outside the root: \.\./0\.png"):
        source[0]
    assert source[1]["image"].size == (4, 3)


def test_a_root_for_files_and_images(photos):
    (photos / "tables").mkdir()
    parquet(photos / "tables" / "t.parquet", image=["0.png", "3.png"], caption=["a", "b"])
    source = Table("tables/t.parquet", "all", root=str(photos))
    assert source[1]["image"].getpixel((0, 0)) == (3, 0, 0)
    with pytest.raises(ClipxError, match="nowhere does not exist"):
        Table("tables/t.parquet", root=str(photos / "nowhere"))


def test_missing_images(photos):
    good = {"image": ["0.png", "1.png", "none.png"], "caption": ["a", "b", "c"]}
    assert Table(parquet(photos / "t.parquet", **good), "all").skipped == {"missing image": 1}
    bad = {"image": ["0.png", "x.png", "y.png"], "caption": ["a", "b", "c"]}
    with pytest.raises(ClipxError, match="2 of the 3 images"):
        Table(parquet(photos / "t.parquet", **bad), "all")


def test_a_broken_image_is_a_bad_sample(tmp_path):
    cells = [{"bytes": png()[:40], "path": None}, {"bytes": b"text", "path": None}, *images(1)]
    source = Table(parquet(tmp_path / "t.parquet", image=cells, label=[0, 1, 1]), "all")
    first, second, third = source.examples([0, 1, 2])
    assert isinstance(first, BadSample)
    assert "not an image" in str(second)
    assert third["label"] == 1


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"caption_column": "captoin"}, "no column 'captoin'", "text, words"),
        ({"label_column": "species"}, "no column 'species'", "text, words"),
        ({"image_column": "photo"}, "no column 'photo'", "image, text, words"),
        ({"image_column": "words"}, "image column 'words' holds int64", "path"),
    ],
)
def test_wrong_columns(tmp_path, arguments, message, hint):
    path = parquet(tmp_path / "t.parquet", image=images(2), text=["a", "b"], words=[1, 2])
    with pytest.raises(ClipxError, match=message) as error:
        Table(path, "all", **arguments)
    assert hint in error.value.hint


def test_no_columns_that_fit(tmp_path):
    with pytest.raises(ClipxError, match="no column that looks like the image") as error:
        Table(parquet(tmp_path / "t.parquet", a=[1], b=[2]))
    assert "a, b" in error.value.hint
    with pytest.raises(ClipxError, match="no column that looks like a caption or a label"):
        Table(parquet(tmp_path / "t.parquet", image=images(1), b=[2]))
    with pytest.raises(ClipxError, match="classification needs two classes or more, and t has 1"):
        Table(parquet(tmp_path / "t.parquet", image=images(2), label=[1, 1]))
    with pytest.raises(ClipxError, match="labels are not whole numbers"):
        Table(parquet(tmp_path / "t.parquet", image=images(2), label=[0.5, 1.0]))
    train = parquet(tmp_path / "train.parquet", image=images(2), label=[0, 1])
    test = parquet(tmp_path / "test.parquet", image=images(2), klass=[0, 1])
    with pytest.raises(ClipxError, match=r"test\.parquet has no column 'label'"):
        Table(train=train, test=test)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "jsonl", "csv"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage\xff" * 9, b'{"image": "a", "caption": \n'])
def test_damaged_files(tmp_path, ending, content):
    (tmp_path / f"t.{ending}").write_bytes(content)
    with pytest.raises(ClipxError):
        Table(str(tmp_path / f"t.{ending}"))


def test_a_truncated_parquet_file(tmp_path):
    path = Path(parquet(tmp_path / "t.parquet", image=images(20), label=[0, 1] * 10))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ClipxError, match="cannot be read") as error:
        Table(str(path))
    assert error.value.hint == "is the file complete?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no files"),
        ({"path": "none.parquet"}, r"none\.parquet: no such file"),
        ({"path": "*.parquet"}, "no such file"),
        ({"path": "t.xlsx"}, r"\.xlsx is not known"),
        ({"path": ["t.csv"], "train": ["t.csv"]}, "both given"),
        ({"path": "empty"}, "holds no table"),
    ],
)
def test_files_that_are_not_there(tmp_path, arguments, message):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipxError, match=message):
        Table(root=str(tmp_path), **arguments)


def test_csv_as_people_write_it(photos):
    text = (
        'Image;Caption;Class\r\n0.png;"a; with\r\na break";x\r\n1.png;b\r\n2.png;c;y\r\n3.png;un café;x\r\n'
    )
    (photos / "t.csv").write_bytes(text.encode("latin-1"))
    source = Table(str(photos / "t.csv"), "all")
    assert [source[index]["captions"] for index in range(3)] == [["a; with\r\na break"], ["c"], ["un café"]]
    assert source.skipped == {"broken row": 1}
    assert source.classes == ["x", "y"]


def test_a_csv_file_with_a_header_alone(photos):
    (photos / "t.csv").write_text("image,caption\n")
    with pytest.raises(ClipxError):
        Table(str(photos / "t.csv"))


def test_a_large_parquet_file_is_mapped(tmp_path, monkeypatch):
    import datasets

    path = parquet(tmp_path / "pets.parquet", ["cat", "bear"], image=images(5), label=[1, 0, 1, 0, 1])
    before = Table(path, "all")
    monkeypatch.setattr(arrow, "_IN_MEMORY", 10)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mapped = Table(path, "all")
    assert mapped.classes == before.classes
    assert mapped.fingerprint() == before.fingerprint()
    assert all(np.array_equal(mapped[i]["image"], before[i]["image"]) for i in range(5))


def test_the_fingerprint_follows_the_content(tmp_path):
    path = parquet(tmp_path / "t.parquet", image=images(20), label=[0, 1] * 10)
    first = Table(path).fingerprint()
    assert Table(path).fingerprint() == first
    assert Table(path, "test", test_fraction=0.5).fingerprint() != first
    parquet(tmp_path / "t.parquet", image=images(20), label=[1, 0] * 10)
    assert Table(path).fingerprint() != first


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="../shared/data/cifar10 is not there")
def test_cifar10():
    arguments = {
        "root": str(CIFAR10),
        "train": "train.parquet",
        "test": "test.parquet",
        "templates": "cifar10",
    }
    parts = {split: Table(split=split, **arguments) for split in ("train", "validation", "test")}
    assert len(parts["test"]) == 4000
    assert len(parts["train"]) + len(parts["validation"]) == 20000
    assert parts["train"].classes[:3] == ["airplane", "automobile", "bird"]
    assert len(parts["train"].templates) == 18
    assert parts["test"].name == "cifar10"
    assert parts["test"][0]["image"].size == (32, 32)
