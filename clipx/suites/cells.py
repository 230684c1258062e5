"""Cells: the points of a grid, each composed into the configuration of one run and named by it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx import __version__, cards, config
from clipx.errors import ClipxError
from clipx.suites.grid import Grid, override_text
from clipx.suites.needs import needs_of

ALL = "all"
"""The value of ``method`` that stands for every card of the command."""

_EARLY = ("model", "data")
_PRESETS = Path(__file__).parent.parent / "models" / "presets"


@dataclass(frozen=True)
class Cell:
    """One run of a suite, before it is made.

    Attributes:
        command: of clipx, ``adapt``.
        method: its card's name.
        axes: value of every axis but method and seed.
        seed: of the run; None where it takes several itself.
        argv: the command line that makes this run alone.
        overrides: as ``config.prepare`` gives them.
        settings: the resolved configuration.
        key: hash of what decides the result.
    """

    command: str
    method: str
    axes: dict[str, Any]
    seed: int | str | None
    argv: tuple[str, ...]
    overrides: tuple[str, ...]
    settings: dict[str, Any]
    key: str

    @property
    def command_line(self) -> str:
        return shlex.join(self.argv)

    @property
    def label(self) -> str:
        """The cell as a person reads it: ``gda shots=4 seed=1``."""
        parts = [f"{key}={value}" for key, value in self.axes.items()]
        parts += [f"seed={self.seed}"] if self.seed is not None else []
        return " ".join([self.method, *parts])


def identity(settings: Mapping[str, Any]) -> str:
    """Hash of what decides a run's result: its resolved configuration, the version of clipx, and the weights
    that ship with it where these are meant.

    What a card says about its method (citation, claim) decides nothing and is left out.
    """
    counted = {key: value for key, value in settings.items() if key != "card"}
    model = settings.get("model")
    weights = _shipped(str(model.get("name"))) if isinstance(model, Mapping) else None
    text = json.dumps([__version__, weights, counted], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_methods(
    grid: Grid, command: str, needs: Sequence[str] | None, config_dir: str | os.PathLike[str] | None
) -> Grid:
    """The grid with ``all`` replaced by the names of the cards.

    Args:
        grid: whose axis ``method`` may hold ``all``.
        command: whose cards.
        needs: only cards whose adapter needs one of these; None for every card.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: there is no such card.
    """
    if ALL not in grid.axes.get("method", ()):
        return grid
    found = cards.list_cards(config.conf_dirs(config_dir), command)
    names = [card.name for card in found if needs is None or needs_of(card) in needs]
    if not names:
        raise ClipxError(
            f"no method of {command} " + (f"needs {' or '.join(needs)}" if needs else "is there"),
            hint=f"clipx methods {command}",
        )
    named = [name for value in grid.axes["method"] for name in (names if value == ALL else [value])]
    return Grid({**grid.axes, "method": tuple(dict.fromkeys(named))}, grid.fixed)


@dataclass(frozen=True)
class Draft:
    """A cell before it is composed.

    Attributes:
        command: of clipx.
        point: value of every axis.
        typed: its overrides as a person types them, without the method.
        overrides: as ``config.prepare`` gives them.
    """

    command: str
    point: dict[str, Any]
    typed: tuple[str, ...]
    overrides: tuple[str, ...]


def drafts_of(
    grid: Grid, command: str, *, config_dir: str | os.PathLike[str] | None = None, root: Path | None = None
) -> list[Draft]:
    """Every point of a grid as overrides.

    Args:
        grid: whose methods are names.
        command: of clipx.
        config_dir: the user's own conf directory.
        root: the output root, where ``model=pretrain/infonce/latest`` is looked up.

    Raises:
        ClipxError: an override is not ``key=value``, or a model that looks like a path does not exist.
    """

    @functools.cache  # to prepare an override takes a look at files and a parser
    def prepared(override: str) -> str:
        return config.prepare(command, [override], config_dir=config_dir, root=root)[0]

    drafts = []
    for point in grid.points():
        own = (f"{key}={override_text(value)}" for key, value in point.items() if key != "method")
        typed = (*grid.fixed, *own)
        chosen = [f"{config.method_key(command)}={point['method']}"] if "method" in point else []
        drafts.append(Draft(command, point, typed, (*chosen, *map(prepared, typed))))
    return drafts


def digest_of(drafts: Sequence[Draft], config_dir: str | os.PathLike[str] | None = None) -> str:
    """Hash of all that these cells and their keys depend on: overrides, files of conf/, version, weights.

    Raises:
        OSError: a file of conf/ cannot be read.
    """
    digest = hashlib.sha256(__version__.encode())
    digest.update(repr({path.name: _shipped(path.name) for path in sorted(_PRESETS.iterdir())}).encode())
    digest.update(repr([(each.command, each.point, each.typed, each.overrides) for each in drafts]).encode())
    for folder in config.conf_dirs(config_dir):
        for path in sorted(folder.rglob("*.yaml")):
            digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def cells_of(drafts: Sequence[Draft], config_dir: str | os.PathLike[str] | None = None) -> list[Cell]:
    """The cells, composed, in the order of their drafts; what is wrong with any of them is told here.

    Raises:
        ClipxError: a wrong choice, key or value, or one that is missing.
    """
    own = [] if config_dir is None else ["--config-dir", os.fspath(config_dir)]
    composed: dict[int, dict[str, Any]] = {}
    for command in dict.fromkeys(draft.command for draft in drafts):
        places = [place for place, draft in enumerate(drafts) if draft.command == command]
        found = config.compose_many(command, [drafts[place].overrides for place in places], config_dir)
        composed.update(zip(places, found, strict=True))
    cells = []
    for place, draft in enumerate(drafts):
        settings = composed[place]
        seed = settings.get("seed")
        argv = [
            "clipx",
            draft.command,
            "--method",
            settings["method"],
            *_lasting(draft.typed, settings),
            *own,
        ]
        cells.append(
            Cell(
                command=draft.command,
                method=str(settings["method"]),
                axes={key: value for key, value in draft.point.items() if key not in ("method", "seed")},
                seed=seed if isinstance(seed, int | str) else None,
                argv=tuple(argv),
                overrides=draft.overrides,
                settings=settings,
                key=identity(settings),
            )
        )
    return cells


def in_order_of_work(cells: Sequence[Cell]) -> list[Cell]:
    """The cells in the order that shares most: those of one model together, in it those of one data set.

    Of these, those of the same shots and seed follow each other, each method once.
    """

    def rank(key: str) -> int:
        group = key.lstrip("+").split(".")[0].split("@")[0]
        return _EARLY.index(group) if group in _EARLY else len(_EARLY)

    keys = sorted(dict.fromkeys(key for cell in cells for key in cell.axes), key=rank)
    seen: dict[str, dict[str, int]] = {key: {} for key in [*keys, "seed", "command"]}

    def place(cell: Cell) -> tuple[int, ...]:
        values = {**cell.axes, "seed": cell.seed, "command": cell.command}
        return tuple(
            seen[key].setdefault(repr(values.get(key)), len(seen[key])) for key in ["command", *keys, "seed"]
        )

    return sorted(cells, key=place)


@functools.cache
def _shipped(name: str) -> str | None:
    """Hash of the weights that ship with a preset; None where there are none."""
    files = sorted(_PRESETS.glob(f"{name}/*.safetensors")) if re.fullmatch(r"[\w-]+", name) else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16] if files else None


def _lasting(overrides: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Overrides that will mean the same tomorrow: ``model=latest`` is replaced by the run it is today."""
    model = settings.get("model")
    name = str(model.get("name", "")) if isinstance(model, dict) else ""
    return [
        f"model={name}" if override.startswith("model=") and Path(name).is_absolute() else override
        for override in overrides
    ]
