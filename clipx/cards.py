"""Method cards: the folder conf/method/<command>/ is the registry, read without composing anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipx.errors import ClipxError, did_you_mean


@dataclass(frozen=True)
class Card:
    """One method: what it is, whom to cite, what it claims, and the settings it brings."""

    command: str
    name: str
    path: Path
    card: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return str(self.card.get("title") or self.name)

    @property
    def year(self) -> int | None:
        return self.card.get("year")

    @property
    def usage(self) -> str:
        return f"clipx {self.command} --method {self.name}"


def list_cards(folders: Iterable[Path], command: str | None = None) -> list[Card]:
    """Every card in ``folders`` (conf directories), sorted by command and name.

    Args:
        folders: the package's conf directory, then the user's; where both have a card the first is used, as
            in composition.
        command: only this command's cards.

    Raises:
        ClipxError: a card is not YAML, or not a mapping.
    """
    paths: dict[tuple[str, str], Path] = {}
    for folder in folders:
        for path in sorted((folder / "method").glob(f"{command or '*'}/*.yaml")):
            paths.setdefault((path.parent.name, path.stem), path)
    return [_read(*key, path) for key, path in sorted(paths.items())]


def card_names(folders: Iterable[Path], command: str) -> list[str]:
    """The methods of a command, from the names of the files alone."""
    return sorted({path.stem for folder in folders for path in (folder / "method" / command).glob("*.yaml")})


def find_cards(folders: Iterable[Path], name: str) -> list[Card]:
    """The cards called ``name`` or ``command/name``, one a command that has such a method.

    Raises:
        ClipxError: there is none, with the nearest names.
    """
    cards = list_cards(folders)
    found = [card for card in cards if name in (card.name, f"{card.command}/{card.name}")]
    if not found:
        raise ClipxError(f"no method {name!r}", hint=did_you_mean(name, [card.name for card in cards]))
    return found


def _read(command: str, name: str, path: Path) -> Card:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ClipxError(
            f"{path}{line}: not valid YAML", hint=str(getattr(error, "problem", None) or error)
        ) from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not isinstance(content.get("card") or {}, dict):
        raise ClipxError(
            f"{path}: a card is a mapping with a `card:` section", hint="see `clipx methods show infonce`"
        )
    settings = {key: value for key, value in content.items() if key not in ("card", "defaults")}
    return Card(command, name, path, content.get("card") or {}, settings)
