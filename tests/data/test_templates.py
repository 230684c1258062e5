"""Prompt templates and class names."""

import json

import pytest

from clipx.data.templates import CLASS_NAME_SETS, TEMPLATE_NAMES, class_name, class_names, templates
from clipx.errors import ClipxError


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_every_named_set_is_valid_and_distinct(name):
    found = templates(name)
    assert len(found) == len(set(found)) >= 1
    assert templates(found) == found


def test_the_published_sets():
    assert len(templates("imagenet")) == 80
    assert "a photo of a {}." in templates("imagenet")
    assert len(templates("imagenet7")) == 7
    assert "itap of a {}." in templates("imagenet7")
    assert len(templates("cifar10")) == 18
    assert "a low contrast photo of the {}." in templates("cifar100")
    assert "a photo of the big {}." in templates("cifar10")
    assert templates("oxford_pets") == ["a photo of a {}, a type of pet."]
    assert templates("dtd") == ["{} texture."]
    assert templates("simple") == ["a photo of a {}."]


def test_own_templates(tmp_path):
    assert templates("my {} here") == ["my {} here"]
    assert templates(("a {}", "b {}")) == ["a {}", "b {}"]
    (tmp_path / "prompts.txt").write_text("a {}\n\n the {} \n")
    assert templates(str(tmp_path / "prompts.txt")) == ["a {}", "the {}"]


@pytest.mark.parametrize(
    "bad", [["no slot"], ["{} and {}"], ["{0}"], ["{c}"], ["{} {"], [3], "{} or {}", "{label}"]
)
def test_a_template_has_exactly_one_slot(bad):
    with pytest.raises(ClipxError, match=r"does not have exactly one \{\}"):
        templates(bad)


def test_unknown_and_empty(tmp_path):
    with pytest.raises(ClipxError, match="unknown templates 'imagnet'") as error:
        templates("imagnet")
    assert "did you mean 'imagenet'" in error.value.hint
    with pytest.raises(ClipxError, match="templates is empty"):
        templates([])
    with pytest.raises(ClipxError, match="there is no file"):
        templates(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("polar_bear", "polar bear"),
        ("  two   words ", "two words"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("t-shirt", "t-shirt"),
        ("3.5", "3.5"),
        ("7", "7"),
        ("_", "_"),
    ],
)
def test_class_name(text, name):
    assert class_name(text) == name


@pytest.mark.parametrize("name", CLASS_NAME_SETS)
def test_named_class_names(name):
    if name in {"eurosat", "caltech101"}:
        assert class_names(name, ["SeaLake", "Faces", "Forest"])[2] == "Forest"
        assert class_names("eurosat", ["SeaLake"]) == ["Sea or Lake"]
    elif name in {"imagenet_folders", "imagenet_numbers"}:
        raw = {"imagenet_folders": ["n01443537", "n01440764"], "imagenet_numbers": ["1", "0"]}[name]
        assert class_names(name, raw) == ["goldfish", "tench"]
    else:
        sizes = {"imagenet": 1000, "cifar10": 10, "imagenet_a": 200, "imagenet_r": 200}
        assert len(class_names(name)) == sizes[name]


def test_class_names_by_list_mapping_and_file(tmp_path):
    raw = ["a_b", "c"]
    assert class_names(["x", "y"], raw) == ["x", "y"]
    assert class_names({"c": "see"}, raw) == ["a b", "see"]
    (tmp_path / "names.json").write_text(json.dumps(["x", "y"]))
    (tmp_path / "names.yaml").write_text("a_b: ay\nc: see\n")
    (tmp_path / "names.txt").write_text("x\n\ny\n")
    assert class_names(str(tmp_path / "names.json"), raw) == ["x", "y"]
    assert class_names(str(tmp_path / "names.yaml"), raw) == ["ay", "see"]
    assert class_names(str(tmp_path / "names.txt"), raw) == ["x", "y"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["x"], "1 names, the data has 2 classes"),
        (["x", "x"], "repeats 'x'"),
        (["x", ""], "empty name"),
        ({"d": "z"}, "maps none"),
        ("cifar", "unknown class_names 'cifar'"),
        ("none.txt", "there is no file"),
        ("none.json", "there is no file"),
    ],
)
def test_class_names_that_do_not_fit(source, message):
    with pytest.raises(ClipxError, match=message):
        class_names(source, ["a", "c"])


def test_class_name_files_that_cannot_be_read(tmp_path):
    (tmp_path / "names.json").write_text("{")
    with pytest.raises(ClipxError, match="cannot be read"):
        class_names(str(tmp_path / "names.json"), ["a"])
    (tmp_path / "names.yaml").write_text("7")
    with pytest.raises(ClipxError, match=r"neither a list nor a mapping|cannot be read"):
        class_names(str(tmp_path / "names.yaml"), ["a"])
    with pytest.raises(ClipxError, match="numbers only"):
        class_names({"a": "b"})
