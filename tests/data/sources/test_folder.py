"""A user's folder of images: class folders, split folders, captions files, and all that can be wrong."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from clipx.data.sources.folder import Folder
from clipx.errors import BadSample, ClipxError


def put(root, *paths, colour=(200, 30, 30)):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), colour).save(root / path)


def numbered(folder, count, start=0):
    return [f"{folder}/{number:03d}.jpg" for number in range(start, start + count)]


def ids(source):
    return [source[index]["id"] for index in range(len(source))]


@pytest.fixture
def animals(tmp_path):
    put(tmp_path, *numbered("polar_bear", 60), *numbered("cat/indoors", 20), *numbered("cat", 30))
    return tmp_path


@pytest.fixture
def captioned(tmp_path):
    put(tmp_path, *numbered("images", 6))
    return tmp_path


def write_captions(root, rows, name="captions.csv", header="image,caption"):
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_class_folders_give_labels_and_names(animals):
    source = Folder(str(animals), "all")
    assert source.classes == ["cat", "polar bear"]
    assert len(source) == 110
    assert source.name == animals.name
    example = source[0]
    assert example["id"] == "cat/000.jpg"
    assert example["image"].size == (8, 6)
    assert example["captions"] == []
    labels = [source[index]["label"] for index in range(len(source))]
    assert labels.count(0) == 50
    assert labels.count(1) == 60
    assert source.labels.tolist() == labels


def test_splits_are_disjoint_complete_and_stable(animals):
    parts = {split: ids(Folder(str(animals), split)) for split in ("train", "validation", "test")}
    together = [path for part in parts.values() for path in part]
    assert sorted(together) == sorted(ids(Folder(str(animals), "all")))
    assert len(together) == len(set(together))
    assert 3 <= len(parts["test"]) <= 25
    # A new image moves no other one.
    put(animals, "cat/new.jpg")
    for split, before in parts.items():
        assert set(before) <= set(ids(Folder(str(animals), split)))


def test_fractions_are_the_users(animals):
    assert len(Folder(str(animals), "test", test_fraction=1.0)) == 110
    assert 35 <= len(Folder(str(animals), "test", test_fraction=0.5)) <= 75
    with pytest.raises(ClipxError, match=r"test_fraction is 1\.5"):
        Folder(str(animals), test_fraction=1.5)
    with pytest.raises(ClipxError, match=r"the train split of .* is empty: none of its 110 items") as error:
        Folder(str(animals), "train", test_fraction=1.0)
    assert error.value.hint
    with pytest.raises(ClipxError, match="unknown split 'tset'") as error:
        Folder(str(animals), "tset")
    assert "did you mean 'test'" in error.value.hint


def test_the_order_does_not_depend_on_the_file_system(animals, monkeypatch):
    before = ids(Folder(str(animals), "all"))
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(real(path))))
    assert ids(Folder(str(animals), "all")) == before


@pytest.mark.parametrize("validation", ["val", "valid", "Validation", "dev"])
def test_split_folders_are_honoured(tmp_path, validation):
    for top, count in (("train", 3), (validation, 2), ("test", 1)):
        put(tmp_path, *numbered(f"{top}/a", count), *numbered(f"{top}/b", count))
    for split, count in (("train", 6), ("validation", 4), ("test", 2)):
        source = Folder(str(tmp_path), split)
        assert (len(source), source.classes) == (count, ["a", "b"])


def test_a_class_missing_from_a_split_keeps_the_numbers(tmp_path):
    put(tmp_path, *numbered("train/a", 2), *numbered("train/b", 2), *numbered("test/b", 2))
    source = Folder(str(tmp_path), "test")
    assert source.classes == ["a", "b"]
    assert source.labels.tolist() == [1, 1]


def test_train_and_val_only_is_tested_on_val_and_validated_on_train(tmp_path):
    put(
        tmp_path,
        *numbered("train/a", 30),
        *numbered("train/b", 30),
        *numbered("val/a", 3),
        *numbered("val/b", 3),
    )
    test, validation, train = (set(ids(Folder(str(tmp_path), s))) for s in ("test", "validation", "train"))
    assert {path.split("/")[0] for path in test} == {"val"}
    assert {path.split("/")[0] for path in validation | train} == {"train"}
    assert not validation & train
    assert len(validation | train) == 60


def test_test_only_data_has_no_train_split(tmp_path):
    put(tmp_path, *numbered("test/a", 2), *numbered("test/b", 2))
    assert len(Folder(str(tmp_path), "test")) == 4
    with pytest.raises(ClipxError, match="no train split, only test"):
        Folder(str(tmp_path), "train")


def test_a_class_called_train_among_others_is_a_class(tmp_path):
    put(tmp_path, *numbered("bus", 2), *numbered("train", 2), *numbered("car", 2))
    assert Folder(str(tmp_path), "all").classes == ["bus", "car", "train"]


def test_unbalanced_classes_are_fine(tmp_path):
    put(tmp_path, "rare/only.jpg", *numbered("common", 40))
    source = Folder(str(tmp_path), "all")
    assert np.bincount(source.labels).tolist() == [40, 1]


def test_class_names_by_file_list_and_mapping(animals):
    (animals / "names.txt").write_text("a cat\nan ice bear\n")
    (animals / "names.json").write_text(json.dumps({"polar_bear": "ice bear"}))
    (animals / "names.yaml").write_text("polar_bear: ice bear\n")
    assert Folder(str(animals), class_names="names.txt").classes == ["a cat", "an ice bear"]
    assert Folder(str(animals), class_names="names.json").classes == ["cat", "ice bear"]
    assert Folder(str(animals), class_names=str(animals / "names.yaml")).classes == ["cat", "ice bear"]
    assert Folder(str(animals), class_names=["x", "y"]).classes == ["x", "y"]
    with pytest.raises(ClipxError, match="3 names, the data has 2 classes"):
        Folder(str(animals), class_names=["x", "y", "z"])


def test_templates_are_resolved(animals):
    assert Folder(str(animals)).templates is None
    assert Folder(str(animals), templates="simple").templates == ["a photo of a {}."]
    with pytest.raises(ClipxError, match="unknown templates 'simpel'"):
        Folder(str(animals), templates="simpel")


def test_a_broken_image_is_a_bad_sample_and_the_rest_goes_on(animals):
    (animals / "cat" / "000.jpg").write_bytes(b"not an image at all, but text")
    source = Folder(str(animals), "all")
    with pytest.raises(BadSample, match=r"not an image: .*cat/000\.jpg"):
        source[0]
    bad, good = source.examples([0, 1])
    assert isinstance(bad, BadSample)
    assert good["id"] == "cat/001.jpg"


def test_positions_outside_are_index_errors(animals):
    source = Folder(str(animals), "all")
    assert source[-1]["id"] == source[len(source) - 1]["id"]
    with pytest.raises(IndexError, match="110 items"):
        source[110]


def test_images_outside_class_folders_are_counted(animals):
    put(animals, "loose.jpg", ".hidden/x.jpg")
    (animals / "readme.txt").write_text("hello")
    source = Folder(str(animals), "all")
    assert len(source) == 110
    assert source.skipped == {"not in a class folder": 1}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no images"),
        (("one/1.jpg", "one/2.jpg"), "classification needs two class folders or more.*only one, 'one'"),
        (("1.jpg", "2.jpg"), "classification needs two class folders or more.*there is none"),
    ],
)
def test_nothing_to_classify(tmp_path, paths, message):
    put(tmp_path, *paths)
    with pytest.raises(ClipxError, match=message) as error:
        Folder(str(tmp_path))
    assert error.value.hint


def test_a_missing_root_and_a_file_for_a_root(tmp_path):
    with pytest.raises(ClipxError, match="nowhere does not exist"):
        Folder(str(tmp_path / "nowhere"))
    (tmp_path / "file.csv").write_text("")
    with pytest.raises(ClipxError, match="not a folder"):
        Folder(str(tmp_path / "file.csv"))


def test_links_out_of_the_root_are_not_followed(tmp_path):
    put(tmp_path, "outside/secret.jpg", *numbered("root/a", 3), *numbered("root/b", 3))
    root = tmp_path / "root"
    (root / "a" / "link.jpg").symlink_to(tmp_path / "outside" / "secret.jpg")
    (root / "c").symlink_to(tmp_path / "outside")
    (root / "b" / "again.jpg").symlink_to(root / "a" / "000.jpg")
    (root / "b" / "loop").symlink_to(root)
    source = Folder(str(root), "all")
    assert source.skipped == {"outside the root": 2}
    assert source.classes == ["a", "b"]
    assert ids(source) == [*numbered("a", 3), *numbered("b", 3), "b/again.jpg"]
    # A root that is itself a link is what the user asked for.
    (tmp_path / "alias").symlink_to(root)
    assert len(Folder(str(tmp_path / "alias"), "all")) == 7


def test_captions_of_an_image_are_kept_together(captioned):
    write_captions(
        captioned,
        ["images/000.jpg,a red square", "images/000.jpg,  crimson  ", "images/001.jpg,another"],
    )
    source = Folder(str(captioned), "all", captions="captions.csv")
    assert source.classes is None
    assert len(source) == 2
    assert source[0]["captions"] == ["a red square", "crimson"]
    assert source[0]["label"] == -1
    assert source[0]["id"] == "images/000.jpg"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "filepath,title\nimages/000.jpg,a\nimages/001.jpg,b\n"),
        ("metadata.csv", "file_name;text\nimages/000.jpg;a\nimages/001.jpg;b\n"),
        ("captions.csv", "image_name| comment_number| comment\nimages/000.jpg| 0| a\nimages/001.jpg| 0| b\n"),
        ("captions.tsv", "path\tcaption\nimages/000.jpg\ta\nimages/001.jpg\tb\n"),
        ("captions.csv", "\ufeffimage,caption\r\nimages\\000.jpg,a\r\nimages\\001.jpg,b\r\n"),
        (
            "captions.jsonl",
            '{"filename": "images/000.jpg", "caption": ["a"]}\n'
            '{"filename": "images/001.jpg", "caption": "b"}\n',
        ),
    ],
)
def test_captions_files_are_found_and_read(captioned, name, text):
    (captioned / name).write_text(text, encoding="utf-8")
    source = Folder(str(captioned), "all")
    assert [source[index]["captions"] for index in range(2)] == [["a"], ["b"]]


def test_coco_captions(captioned):
    content = {
        "images": [{"id": 7, "file_name": "000.jpg"}, {"id": 9, "file_name": "001.jpg"}],
        "annotations": [
            {"image_id": 9, "caption": "b"},
            {"image_id": 7, "caption": "a"},
            {"image_id": 9, "caption": "c"},
        ],
    }
    (captioned / "coco.json").write_text(json.dumps(content))
    source = Folder(str(captioned / "images"), "all", captions=str(captioned / "coco.json"))
    assert [source[index]["captions"] for index in range(2)] == [["b", "c"], ["a"]]


def test_a_latin_captions_file(captioned):
    (captioned / "captions.csv").write_bytes("image,caption\nimages/000.jpg,un café\n".encode("latin-1"))
    assert Folder(str(captioned), "all")[0]["captions"] == ["un café"]


def test_captions_with_split_folders(tmp_path):
    put(tmp_path, "train/1.jpg", "train/2.jpg", "val/3.jpg", "test/4.jpg", "5.jpg")
    write_captions(
        tmp_path,
        [f"{path},text" for path in ("train/1.jpg", "train/2.jpg", "val/3.jpg", "test/4.jpg", "5.jpg")],
    )
    source = Folder(str(tmp_path), "train", captions="captions.csv")
    assert ids(source) == ["train/1.jpg", "train/2.jpg"]
    assert source.skipped == {"in no split's folder": 1}
    assert ids(Folder(str(tmp_path), "test", captions="captions.csv")) == ["test/4.jpg"]


def test_bad_rows_are_skipped_and_counted(captioned, tmp_path):
    put(tmp_path.parent, "outside.jpg")
    (captioned / "link.jpg").symlink_to(tmp_path.parent / "outside.jpg")
    write_captions(
        captioned,
        [
            *(f"images/{number:03d}.jpg,good" for number in range(6)),
            "images/none.jpg,missing",
            "../outside.jpg,escapes",
            f"{tmp_path.parent / 'outside.jpg'},escapes",
            "link.jpg,escapes",
            "images/000.jpg,   ",
            "images/000.jpg",
        ],
    )
    source = Folder(str(captioned), "all", captions="captions.csv")
    assert len(source) == 6
    assert source.skipped == {"blank caption": 2, "missing image": 1, "outside the root": 3}


def test_mostly_missing_images_are_an_error(captioned):
    write_captions(captioned, ["images/000.jpg,ok", "elsewhere/1.jpg,x", "elsewhere/2.jpg,x"])
    with pytest.raises(ClipxError, match=r"2 of the 3 images .*\(missing image: 'elsewhere/1\.jpg'") as error:
        Folder(str(captioned), captions="captions.csv")
    assert str(captioned) in error.value.hint


def test_addresses_are_not_downloaded(captioned):
    write_captions(captioned, ["https://example.org/1.jpg,x"])
    with pytest.raises(ClipxError, match="does not download"):
        Folder(str(captioned), captions="captions.csv")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("image,caption\nimages/000.jpg,\n", {}, "every caption in captions.csv is blank"),
        ("", {}, "captions.csv is empty"),
        ("image,caption\n", {}, "captions.csv is empty"),
        ("image,words\nimages/000.jpg,a\n", {}, "no column that looks like the caption"),
        ("image,caption\nimages/000.jpg,a\n", {"caption_column": "captoin"}, "no column 'captoin'"),
        ("image,caption\nimages/000.jpg,a\n", {"image_column": "x"}, "no column 'x'"),
    ],
)
def test_captions_files_that_do_not_fit(captioned, text, arguments, message):
    (captioned / "captions.csv").write_text(text)
    with pytest.raises(ClipxError, match=message) as error:
        Folder(str(captioned), captions="captions.csv", **arguments)
    if "column" in message:
        assert "caption" in error.value.hint or "words" in error.value.hint


def test_captions_files_that_cannot_be_read(captioned):
    with pytest.raises(ClipxError, match=r"none\.csv does not exist"):
        Folder(str(captioned), captions="none.csv")
    (captioned / "captions.xlsx").write_bytes(b"PK")
    with pytest.raises(ClipxError, match=r"\.xlsx is not known"):
        Folder(str(captioned), captions="captions.xlsx")
    (captioned / "captions.jsonl").write_text('{"image": "a"}\n{"image": \n')
    with pytest.raises(ClipxError, match="damaged in line 2"):
        Folder(str(captioned), captions="captions.jsonl")


def test_the_fingerprint_follows_the_content(animals):
    first = Folder(str(animals)).fingerprint()
    assert Folder(str(animals)).fingerprint() == first
    assert Folder(str(animals), "test").fingerprint() != first
    assert Folder(str(animals), class_names=["x", "y"]).fingerprint() != first
    path = animals / ids(Folder(str(animals)))[0]
    Image.new("RGB", (9, 9)).save(path)
    assert Folder(str(animals)).fingerprint() != first
