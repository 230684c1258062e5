import pytest

from clipx import config
from clipx.cards import Card, list_cards
from clipx.suites.needs import needs_of


@pytest.mark.parametrize("card", list_cards([config.conf_dir()], "adapt"), ids=lambda card: card.name)
def test_what_is_read_is_what_the_class_says(card):
    from hydra.utils import get_object

    assert needs_of(card) == get_object(card.settings["adapter"]["_target_"]).needs


def card(tmp_path, target):
    return Card("adapt", "mine", tmp_path / "mine.yaml", {}, {"adapter": {"_target_": target}})


def test_a_class_may_inherit_it_from_another_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_parts.py").write_text("class Tower:\n    needs: str = 'images'\n")
    (tmp_path / "my_parts.py").write_text(
        "import does_not_exist\nfrom their_parts import Tower as Base\n"
        "class Mine(Base):\n    pass\nclass Plain:\n    pass\n"
    )
    assert needs_of(card(tmp_path, "my_parts.Mine")) == "images"
    assert needs_of(card(tmp_path, "my_parts.Plain")) == "features"
    assert needs_of(card(tmp_path, "my_parts.Missing")) == "features"
    assert needs_of(card(tmp_path, "no_such_module.Mine")) == "features"
