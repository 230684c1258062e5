"""A grid: axes with their values, and what all its cells share; from a suite file and the command line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipx.errors import ClipxError

_PLAIN = re.compile(r"[A-Za-z_][\w./:@-]*|[./~][\w./:@~-]*")
_WORDS = {"null", "true", "false", "nan", "inf"}
ALWAYS_AXES = ("method", "model", "data", "shots", "seed")
"""Keys of which a list is always several values: a cell's seed is one, whatever the default of the key."""


@dataclass(frozen=True)
class Grid:
    """Axes and fixed overrides.

    Attributes:
        axes: values by key, in the order in which tables show them; no axis is empty.
        fixed: overrides of every cell, as typed.
    """

    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    def points(self) -> list[dict[str, Any]]:
        """Every combination of the axes' values, the last axis running fastest."""
        return [
            dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())
        ]


def grid_of(
    axes: Mapping[str, Any],
    fixed: Mapping[str, Any],
    arguments: Sequence[str],
    default_of: Callable[[str], Any],
) -> Grid:
    """The grid of a suite, changed by the command line.

    ``key=a,b`` and ``key=[a,b]`` are an axis, except where a list is what the key takes, as in
    ``data.objects=[1,5]``. Any other ``key=value`` takes the place of the suite's axis or fixed value of that
    key, or is an override of every cell.

    Args:
        axes: of the suite: a list of values, or one, by key.
        fixed: values by key.
        arguments: overrides as typed, which win over the suite.
        default_of: the default of a key in the configuration of a cell; None where there is none.

    Raises:
        ClipxError: an axis without values, or a list that could be one value or several.
    """
    found = {key: _several(values) for key, values in axes.items()}
    shared = {key: f"{key}={override_text(value)}" for key, value in fixed.items()}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator:
            shared[key] = argument
            continue
        values = _axis(key, text, key in found, default_of)
        if values is not None:
            found[key] = values
            shared.pop(key, None)
        elif key in found:
            found[key] = (_parsed(text),)
        else:
            shared[key] = argument
    empty = [key for key, values in found.items() if not values]
    if empty:
        raise ClipxError(f"{empty[0]}=[] leaves nothing to run", hint=f"{empty[0]}=[VALUE,VALUE]")
    return Grid({key: _distinct(values) for key, values in found.items()}, tuple(shared.values()))


def override_text(value: Any) -> str:
    """A value as Hydra reads it back from an override: ``null``, ``0.5``, ``'a b'``, ``[1,2]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{override_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(map(override_text, value)) + "]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def _several(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, list | tuple) else (values,)


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    kept: list[Any] = []
    for value in values:
        if not any(type(value) is type(other) and value == other for other in kept):
            kept.append(value)
    return tuple(kept)


def _axis(key: str, text: str, known: bool, default_of: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """The values of an axis; None where ``text`` is one value."""
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    parsed = _parse(text)
    if isinstance(parsed, ChoiceSweep):
        return tuple(_value(item) for item in parsed.list)
    if isinstance(parsed, RangeSweep):
        return tuple(parsed.range())
    if not isinstance(parsed, list):
        return None
    if known or key in ALWAYS_AXES:
        return tuple(map(_value, parsed))
    if len(parsed) == 1 and isinstance(parsed[0], list):
        return None if isinstance(default_of(key), list) else (_value(parsed[0]),)
    default = default_of(key)
    if isinstance(default, list) or key.startswith("+"):
        return None
    if default is None:
        several = ",".join(override_text(_value(item)) for item in parsed)
        raise ClipxError(
            f"{key}={text} could be one value or several",
            hint=f"several: {key}={several}; one: {key}=[{text}]",
        )
    return tuple(map(_value, parsed))


def _parsed(text: str) -> Any:
    """One value as Python has it; the text itself where Hydra cannot read it."""
    value = _parse(text)
    return text if value is _UNREADABLE else _value(value)


_UNREADABLE = object()


def _parse(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return _UNREADABLE


def _value(item: Any) -> Any:
    from hydra.core.override_parser.types import QuotedString

    if isinstance(item, QuotedString):
        return item.text
    if isinstance(item, list):
        return [_value(part) for part in item]
    if isinstance(item, dict):
        return {_value(key): _value(part) for key, part in item.items()}
    return item
