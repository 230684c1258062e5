"""Every data card names a constructor and arguments that it takes, and says how to use it."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from PIL import Image

CARDS = Path(__file__).parents[3] / "conf" / "data"
OWN = ("folder", "table", "huggingface", "webdataset", "digits", "cifar10")


@pytest.mark.parametrize("name", OWN)
def test_a_card_fits_its_constructor(name):
    text = (CARDS / f"{name}.yaml").read_text()
    assert text.startswith(f"# {name}: ")
    assert "#   clipx " in text
    card = OmegaConf.create(text)
    accepted = inspect.signature(get_object(card["_target_"])).parameters
    arguments = {str(key) for key in card if not str(key).startswith("_")}
    assert arguments <= accepted.keys()
    assert card["_convert_"] == "all"
    for key in arguments:
        # What the card shows is what the constructor does without it, but for what the card is there to set.
        default = accepted[key].default
        if name != "cifar10" and not OmegaConf.is_missing(card, key):
            assert card[key] == default, key
    if name != "cifar10":
        assert arguments == accepted.keys() - {"split"}


def test_overrides_reach_the_constructor_as_plain_lists(tmp_path):
    for number in range(4):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "ab"[number % 2] / f"{number}.png")
    card = OmegaConf.load(CARDS / "folder.yaml")
    card.root, card.class_names, card.templates = str(tmp_path), ["x", "y"], ["a {}"]
    source = instantiate(card, split="all")
    assert (len(source), source.classes, source.templates) == (4, ["x", "y"], ["a {}"])
    assert type(source.templates) is list


def test_the_digits_card_opens():
    assert len(instantiate(OmegaConf.load(CARDS / "digits.yaml"), split="test")) > 100
