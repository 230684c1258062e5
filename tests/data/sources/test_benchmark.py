import json

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from clipx.config import conf_dir
from clipx.data.sources.benchmark import open_benchmark, read_split_file
from clipx.data.templates import class_names
from clipx.errors import ClipxError

CARDS = [
    "caltech101",
    "oxford-pets",
    "stanford-cars",
    "flowers102",
    "food101",
    "fgvc-aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenet",
    "imagenet-v2",
    "imagenet-sketch",
    "imagenet-a",
    "imagenet-r",
]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.fixture
def dtd(tmp_path):
    """A data set as CoOp lays it out, two classes, with its split file."""
    base, items = tmp_path / "dtd", []
    for label, name in enumerate(("banded", "polka_dotted")):
        for number in range(6):
            picture(base / "images" / name / f"{number}.jpg")
            items.append([f"{name}/{number}.jpg", label, name])
    split = {"train": items[::3], "val": items[1::3], "test": items[2::3]}
    (base / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    return tmp_path


@pytest.mark.parametrize("root", ["", "dtd"])
def test_split_files_are_honoured(dtd, root):
    card = OmegaConf.load(conf_dir() / "data" / "dtd.yaml")
    card.root = str(dtd / root)
    source = instantiate(card, split="test")
    assert source.classes == ["banded", "polka dotted"]
    assert source.templates == ["{} texture."]
    assert [source[index]["id"] for index in range(len(source))] == [
        *("banded/2.jpg", "banded/5.jpg", "polka_dotted/2.jpg", "polka_dotted/5.jpg"),
    ]
    assert source.labels.tolist() == [0, 0, 1, 1]
    train = instantiate(card, split="train")
    assert not {train[i]["id"] for i in range(len(train))} & {source[i]["id"] for i in range(len(source))}
    assert train.fingerprint() != source.fingerprint()
    assert len(instantiate(card, split="all")) == 12


def test_a_split_file_cannot_lead_outside(dtd):
    picture(dtd / "secret.jpg")
    path = dtd / "dtd" / "split_zhou_DescribableTextures.json"
    split = json.loads(path.read_text())
    split["test"].append(["../../secret.jpg", 0, "banded"])
    path.write_text(json.dumps(split))
    source = open_benchmark("dtd", "test", root=str(dtd), folder="dtd", images="images")
    assert len(source) == 4
    assert source.skipped == {"outside the root": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is not a split file"),
        ('{"train": [], "val": []}', "is not a split file"),
        ('{"train": [["a.jpg", 0, "a"]], "val": [["b.jpg", 0, "b"]], "test": []}', "both 'a' and 'b'"),
        ('{"train": [["a.jpg", 1, "a"]], "val": [], "test": []}', "no image of class 0"),
    ],
)
def test_split_files_that_do_not_do(dtd, content, message):
    (dtd / "dtd" / "split_zhou_DescribableTextures.json").write_text(content)
    with pytest.raises(ClipxError, match=message):
        open_benchmark("dtd", "train", root=str(dtd), folder="dtd", images="images")


def test_aircraft_lists(tmp_path):
    base = tmp_path / "fgvc_aircraft"
    for number in range(6):
        picture(base / "images" / f"{number}.jpg")
    (base / "variants.txt").write_text("707-320\nA300 B4\n")
    for part, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
        lines = [f"{number} {('707-320', 'A300 B4')[number % 2]}" for number in numbers]
        (base / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    source = open_benchmark("fgvc-aircraft", "test", root=str(base), images="images")
    assert source.classes == ["707-320", "A300 B4"]
    assert [(source[i]["id"], source[i]["label"]) for i in range(2)] == [("4.jpg", 0), ("5.jpg", 1)]


def test_class_folders_without_a_split_file(tmp_path):
    for folder in ("AnnualCrop", "SeaLake"):
        for number in range(40):
            picture(tmp_path / "2750" / folder / f"{number}.jpg")
    parts = {
        split: open_benchmark("eurosat", split, root=str(tmp_path), images="2750", folder_names="eurosat")
        for split in ("train", "validation", "test")
    }
    assert parts["train"].classes == ["Annual Crop Land", "Sea or Lake"]
    assert sum(map(len, parts.values())) == 80
    assert len(parts["train"]) > len(parts["test"]) > 10
    assert parts["train"].name == "eurosat"


def test_imagenet_folders(tmp_path):
    for part in ("train", "val"):
        for folder in ("n01440764", "n01443537"):
            for number in range(20):
                picture(tmp_path / "images" / part / folder / f"{number}.jpg")
    opened = {
        split: open_benchmark(
            "imagenet", split, root=str(tmp_path), images="images", folder_names="imagenet_folders"
        )
        for split in ("train", "validation", "test")
    }
    assert opened["test"].classes == ["tench", "goldfish"]
    assert len(opened["test"]) == 40
    assert len(opened["train"]) + len(opened["validation"]) == 40
    (tmp_path / "classnames.txt").write_text("n01440764 a fish\nn01443537 golden one\n")
    renamed = open_benchmark("imagenet", "test", root=str(tmp_path), images="images")
    assert renamed.classes == ["a fish", "golden one"]


def test_names_of_imagenet_and_its_subsets():
    names = class_names("imagenet")
    assert len(class_names("imagenet_a")) == len(class_names("imagenet_r")) == 200
    assert set(class_names("imagenet_r")) <= set(names)
    assert class_names("imagenet_numbers", ["999", "0"]) == [names[999], names[0]]


def test_nothing_to_open(tmp_path):
    with pytest.raises(ClipxError, match=r"data.root must be given: ucf101"):
        open_benchmark("ucf101", "train", folder="ucf101")
    with pytest.raises(ClipxError, match="holds no images"):
        open_benchmark("dtd", "train", root=str(tmp_path))
    with pytest.raises(ClipxError, match="is not a split file"):
        read_split_file(tmp_path / "none.json")


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_fit(name):
    import inspect

    from clipx.data.templates import templates

    path = conf_dir() / "data" / f"{name}.yaml"
    card = OmegaConf.load(path)
    assert path.read_text().startswith(f"# {name}: ")
    arguments = {str(key) for key in card if not str(key).startswith("_")}
    assert arguments <= inspect.signature(open_benchmark).parameters.keys()
    assert templates(card.templates)
    assert card.name == name
