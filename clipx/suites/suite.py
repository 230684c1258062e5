"""A suite as ``conf/suite/<name>.yaml`` and the command line describe it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx import cards, config, config_errors
from clipx.errors import ClipxError, did_you_mean
from clipx.suites.cells import Draft, drafts_of, with_methods
from clipx.suites.claims import Claim, budget_of, claims_of, drafts_of_claims
from clipx.suites.grid import Grid, grid_of

_OWN = ("suite", "title", "command", "needs", "metric", "metrics", "baseline", "x", "launcher", "jobs")
"""Keys of the eval itself; every other key is of the runs that it makes."""


@dataclass(frozen=True)
class Suite:
    """What is to be run, and how it is to be shown.

    Attributes:
        name: of the suite.
        title: of its report.
        command: that every cell runs.
        grid: whose methods are names.
        metric: that tables and figures show; None for the one that the cards make claims about.
        metrics: for a further table, a column each.
        baseline: method that the others are compared against; None for none.
        x: axis of the curves; None for none.
        launcher: Hydra's, for jobs that share the cells; None for this machine.
        jobs: how many, or how many processes; None for as many as pay.
        launcher_settings: overrides of the launcher's own.
        claims: to be put to the test, in place of the grid; None for a grid.
        budget: how many times the usual one the claims get.
        repetitions: of each side of a claim.
        config_dir: the user's own conf directory.
    """

    name: str
    title: str
    command: str
    grid: Grid
    metric: str | None
    baseline: str | None
    x: str | None
    launcher: str | None
    jobs: int | None
    launcher_settings: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    claims: tuple[Claim, ...] | None = None
    budget: float = 1.0
    repetitions: int = 0
    config_dir: str | os.PathLike[str] | None = None

    def drafts(self, root: Path | None = None) -> list[Draft]:
        """Every cell, before it is composed.

        Args:
            root: the output root, where ``model=pretrain/infonce/latest`` is looked up.

        Raises:
            ClipxError: as ``drafts_of``.
        """
        if self.claims is None:
            return drafts_of(self.grid, self.command, config_dir=self.config_dir, root=root)
        return drafts_of_claims(
            self.claims,
            self.repetitions,
            self.budget,
            self.grid.fixed,
            config_dir=self.config_dir,
            root=root,
        )

    def described(self) -> dict[str, Any]:
        """The suite in plain types, for the configuration of its run."""
        if self.claims is not None:
            return {
                "title": self.title,
                "claims": {f"{claim.command}/{claim.method}": claim.statement for claim in self.claims},
                "budget": self.budget,
                "repetitions": self.repetitions,
                "set": list(self.grid.fixed),
            }
        return {
            "title": self.title,
            "command": self.command,
            "grid": {key: list(values) for key, values in self.grid.axes.items()},
            "set": list(self.grid.fixed),
            "metric": self.metric,
            "metrics": list(self.metrics),
            "baseline": self.baseline,
            "x": self.x,
        }


def open_suite(
    arguments: Sequence[str],
    *,
    method: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> Suite:
    """The suite that a command line asks for.

    Args:
        arguments: ``suite=adapters shots=4,16 data=digits``; keys of the eval's own, axes, overrides.
        method: the value of ``--method``: a name, or ``a,b``.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: an unknown suite or command, an empty axis, an unknown axis for ``x``.
    """
    own = [
        argument for argument in arguments if _key(argument) in _OWN or _key(argument).startswith("claims.")
    ]
    of_launcher = [argument for argument in arguments if _key(argument).startswith("hydra.launcher.")]
    rest = [argument for argument in arguments if argument not in own and argument not in of_launcher]
    if method is not None:
        if any(_key(argument) == "method" for argument in rest):
            raise ClipxError(
                f"two lists of methods: --method {method} and method=", hint="leave one of them out"
            )
        rest.insert(0, f"method={method}")
    with config_errors.translated("eval", own, config_dir):
        config_errors.check_types("eval", own, config_dir)
        composed, chosen = config.compose_prepared("eval", own, config_dir)
        plain = config.resolve(composed)
    if plain.jobs is not None and (not isinstance(plain.jobs, int) or plain.jobs < 1):
        raise ClipxError(f"jobs={plain.jobs}: expected a number, 1 or more", hint="jobs=4")
    shown: dict[str, Any] = {
        "name": str(chosen["suite"]),
        "title": str(plain.title or chosen["suite"]),
        "launcher": plain.launcher,
        "jobs": plain.jobs,
        "launcher_settings": tuple(of_launcher),
        "config_dir": config_dir,
    }
    if plain.claims is not None:
        return _suite_of_claims(own, rest, plain.claims, config_dir, shown)
    command = _known_command(str(plain.command), config_dir)
    axes, fixed = dict(plain.grid or {}), dict(plain.set or {})
    needs = None if plain.needs is None else list(plain.needs)
    grid = grid_of(_plain(axes), _plain(fixed), rest, lambda key: _default(command, rest, key, config_dir))
    grid = with_methods(grid, command, needs, config_dir)
    suite = Suite(
        command=command,
        grid=grid,
        metric=plain.metric,
        metrics=tuple(map(str, plain.metrics)),
        baseline=plain.baseline,
        x=plain.x,
        **shown,
    )
    if suite.x is not None and suite.x not in grid.axes:
        raise ClipxError(f"x={suite.x} is no axis of this grid", hint=did_you_mean(suite.x, grid.axes))
    return suite


def _suite_of_claims(
    own: Sequence[str],
    rest: Sequence[str],
    node: Any,
    config_dir: str | os.PathLike[str] | None,
    shown: dict[str, Any],
) -> Suite:
    """The claims of the cards that ``method=`` names, or of all."""
    for argument in own:
        if _key(argument) in ("command", "needs", "metric", "metrics", "baseline", "x"):
            raise ClipxError(
                f"{argument}: a claim says itself what is compared", hint="clipx methods show NAME prints it"
            )
    grid = grid_of({}, {}, [each for each in rest if _key(each) == "method"], lambda key: None)
    named = grid.axes.get("method")
    if named is None and grid.fixed:
        named = tuple(override.partition("=")[2] for override in grid.fixed)
    repetitions = node.repetitions
    if not isinstance(repetitions, int) or repetitions < 2:
        raise ClipxError(f"claims.repetitions={repetitions} gives no interval", hint="claims.repetitions=3")
    budget = budget_of(node.budget)
    wanted = named if named != ("all",) else None
    found = claims_of(cards.list_cards(config.conf_dirs(config_dir)), wanted, [_key(each) for each in rest])
    return Suite(
        command="",
        grid=Grid({}, tuple(each for each in rest if _key(each) != "method")),
        metric=None,
        baseline=None,
        x=None,
        claims=tuple(found),
        budget=budget,
        repetitions=max(repetitions, round(repetitions * budget)),
        **shown,
    )


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _known_command(command: str, config_dir: str | os.PathLike[str] | None) -> str:
    files = {path.stem for folder in config.conf_dirs(config_dir) for path in folder.glob("*.yaml")}
    known = sorted(files - {"eval"})
    if command not in known:
        raise ClipxError(f"no command {command!r} to evaluate", hint=did_you_mean(command, known))
    return command


def _default(
    command: str, arguments: Sequence[str], key: str, config_dir: str | os.PathLike[str] | None
) -> Any:
    """The default of a key, with the groups chosen that the command line chooses (the first of several)."""
    groups = config.groups(config_dir)
    chosen = []
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if separator and name in groups and "@" not in name:
            chosen.append(f"{name}={value.strip('[]').split(',')[0].strip()}")
    with config_errors.translated(command, chosen, config_dir):
        prepared = config.prepare(command, chosen, config_dir=config_dir)
        base, _ = config.compose_prepared(command, prepared, config_dir)
    return config_errors.default_of(base, key.lstrip("+"))


def _plain(node: dict[Any, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return {
        str(key): OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in node.items()
    }
