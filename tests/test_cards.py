"""Cards: the folder is the registry."""

import pytest

from clipx import config
from clipx.cards import card_names, find_cards, list_cards
from clipx.errors import ClipxError


def write(folder, command, name, text):
    path = folder / "method" / command / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def folders(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(
        ours,
        "pretrain",
        "infonce",
        "# @package _global_\ncard: {title: CLIP, year: 2021}\nobjectives: {a: 1}\n",
    )
    write(ours, "adapt", "tip", "card:\n  title: Tip\ndefaults: [x]\n")
    write(ours, "adapt", "infonce", "")
    write(theirs, "pretrain", "mine", "card: {title: Mine, year: 2026}")
    write(theirs, "pretrain", "infonce", "card: {title: Shadowed}")
    return [ours, theirs]


def test_cards_are_listed_by_command_and_name_the_packages_first(folders):
    cards = list_cards(folders)
    assert [(card.command, card.name) for card in cards] == [
        ("adapt", "infonce"),
        ("adapt", "tip"),
        ("pretrain", "infonce"),
        ("pretrain", "mine"),
    ]
    infonce = cards[2]
    assert (infonce.title, infonce.year) == ("CLIP", 2021)
    assert infonce.settings == {"objectives": {"a": 1}}
    assert infonce.usage == "clipx pretrain --method infonce"
    assert cards[1].settings == {}
    assert cards[0].title == "infonce"
    assert cards[0].year is None
    assert [card.name for card in list_cards(folders, "pretrain")] == ["infonce", "mine"]
    assert card_names(folders, "adapt") == ["infonce", "tip"]


def test_a_card_is_found_by_its_name_or_its_command_and_name(folders):
    assert [card.command for card in find_cards(folders, "infonce")] == ["adapt", "pretrain"]
    assert [card.command for card in find_cards(folders, "adapt/infonce")] == ["adapt"]
    with pytest.raises(ClipxError, match="no method 'infonc'") as caught:
        find_cards(folders, "infonc")
    assert "did you mean 'infonce'" in caught.value.hint


@pytest.mark.parametrize("text", ["card: [a, b", "- a\n- b\n", "card: text"])
def test_a_broken_card_is_named(folders, text):
    path = write(folders[0], "adapt", "broken", text)
    with pytest.raises(ClipxError, match=str(path)):
        list_cards(folders)


@pytest.mark.parametrize(
    "card", list_cards([config.conf_dir()]), ids=lambda card: f"{card.command}-{card.name}"
)
def test_every_card_cites_its_method(card):
    assert card.card["title"]
    assert 1990 < card.year < 2100
    assert card.card["url"].startswith("https://")
