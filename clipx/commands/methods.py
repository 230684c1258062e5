"""``clipx methods``: what the cards say."""

from __future__ import annotations

from typing import Any

from clipx import config, console
from clipx.cards import Card, find_cards, list_cards
from clipx.errors import ClipxError, did_you_mean


def listing(command: str | None, config_dir: str | None, as_json: bool) -> None:
    """Print every card (of a command): command, name, title, year."""
    cards = list_cards(config.conf_dirs(config_dir), command)
    if command is not None and not cards:
        known = {card.command for card in list_cards(config.conf_dirs(config_dir))}
        raise ClipxError(f"no methods for {command!r}", hint=did_you_mean(command, known))
    if as_json:
        console.json_line([_short(card) for card in cards])
        return
    console.table(
        ["command", "method", "title", "year"],
        [[card.command, card.name, card.title, card.year] for card in cards],
    )


def show(name: str, config_dir: str | None, as_json: bool) -> None:
    """Print one card (or the cards of that name): citation, claim, settings, how to run it."""
    cards = find_cards(config.conf_dirs(config_dir), name)
    if as_json:
        described = [{**card.card, **_short(card), "settings": card.settings} for card in cards]
        console.json_line(described[0] if len(described) == 1 else described)
        return
    for number, card in enumerate(cards):
        if number:
            print()
        _describe(card)


def _describe(card: Card) -> None:
    print(f"{card.title}" + (f" ({card.year})" if card.year else ""))
    for key, value in card.card.items():
        if key not in ("title", "year"):
            print(f"  {key:<10} {_inline(value)}")
    print(f"  {'card':<10} {card.path}")
    print(f"\nrun it\n  {card.usage}")
    if card.settings:
        import yaml

        text = yaml.safe_dump(card.settings, sort_keys=False, allow_unicode=True).rstrip()
        print("\nsettings\n" + "\n".join(f"  {line}" for line in text.splitlines()))


def _short(card: Card) -> dict[str, Any]:
    return {
        "command": card.command,
        "name": card.name,
        "title": card.title,
        "year": card.year,
        "usage": card.usage,
        "path": str(card.path),
    }


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_inline(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else " ".join(str(value).split())
