"""Going on with a run that stopped: the one that is named, or the newest of the same configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx import config, config_errors, console
from clipx.errors import ClipxError
from clipx.run import Busy, Run, is_main_process, launched
from clipx.runs import all_runs, find_run, overrides_of, read_status

if TYPE_CHECKING:
    from omegaconf import DictConfig

AUTO = "auto"
"""``--resume auto``: the newest run of the same configuration that stopped, else a new one."""
_FREE = ("loader.", "tracker.", "training.log_every", "training.checkpoint_every", "training.keep")
"""Keys that do not change what is computed; everything else stays as it was when the run began."""

Changes = dict[str, tuple[Any, Any]]
"""Key -> (value of the run, value asked for)."""


@dataclass(frozen=True)
class TakenUp:
    """A run to go on with, or one that is finished and needs no more.

    Attributes:
        run: open, and locked where this process writes; None where it is finished.
        directory: of the run, as far as this process knows it.
        settings: what it goes on with.
    """

    run: Run | None
    directory: Path | None
    settings: DictConfig


def named(
    root: Path,
    reference: str,
    command: str,
    overrides: Sequence[str],
    *,
    method: str | None = None,
    config_dir: str | None = None,
) -> tuple[Path, DictConfig]:
    """The run that a person means, and its configuration with what may be changed and was asked for.

    Args:
        root: the output root.
        reference: as ``find_run`` takes it.
        command: that is to go on.
        overrides: given again or anew.
        method: given again.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: there is no such run, it is another command's, or something is asked for that would change
            what it computes (every such key is named).
    """
    directory = find_run(root, reference, command=command, method=method)
    stored = settings_of(directory)
    if stored.get("command") != command:
        raise ClipxError(
            f"{directory} is a run of {stored.get('command')}, not of {command}",
            hint=f"clipx {stored.get('command')} --resume {reference}",
        )
    if not overrides and method is None:
        return directory, stored
    given = config.prepare(command, overrides, method=method, config_dir=config_dir, root=root)
    changes = _asked(command, stored, overrides_of(directory), given, config_dir)
    refused = {key: change for key, change in changes.items() if not key.startswith(_FREE)}
    if refused:
        raise ClipxError(
            f"a resumed run keeps its configuration; these differ: {_listed(refused)}",
            hint="leave them out, or start a new run without --resume",
        )
    return directory, _changed(stored, changes)


def newest(root: Path, settings: DictConfig, argv: Sequence[str]) -> TakenUp | None:
    """Take up the newest run of this configuration that stopped before its end; None where there is none.

    Of two starts at the same time each takes a run of its own, or one of them none. A run that is finished
    answers for all that were started before it.

    Args:
        root: the output root.
        settings: resolved; its ``command`` and ``method`` say where to look.
        argv: the command line, for the run's command.txt.

    Raises:
        ClipxError: other processes are working on every run of this configuration.
    """
    busy: Busy | None = None
    another: tuple[Path, Changes] | None = None
    for path in reversed([found.path for found in all_runs(root, settings.command, settings.method)]):
        if not (path / "config.yaml").is_file():
            continue
        try:
            stored = settings_of(path)
        except ClipxError as error:
            console.warn(f"{error.message}; passing it over")
            continue
        changes = _changes(stored, settings)
        refused = {key: change for key, change in changes.items() if not key.startswith(_FREE)}
        status = read_status(path).get("status")
        finished = status == "completed"
        if refused:
            if status in ("interrupted", "failed") and another is None:
                another = path, refused
            continue
        if not finished:
            try:
                return TakenUp(Run.open(path, argv=argv), path, _changed(stored, changes))
            except Busy as error:
                busy = error
                continue
            except ClipxError:
                if read_status(path).get("status") != "completed":
                    raise
        return TakenUp(None, path, stored)
    if busy is not None:
        raise busy
    if another is not None:
        console.info(f"starting anew: {another[0]} stopped too, but differs: {_listed(another[1])}")
    return None


def newest_of_launch(root: Path, settings: DictConfig, argv: Sequence[str]) -> TakenUp | None:
    """As ``newest``, the same in all processes of a launch; collective there."""
    if launched() == 1:
        return newest(root, settings, argv)
    from omegaconf import OmegaConf

    from clipx.training.group import join_launch, told

    join_launch()
    if not is_main_process():
        common = told(None)
        if isinstance(common, ClipxError):
            raise common
        if common is None:
            return None
        directory, finished, plain = common
        others = OmegaConf.create(plain)
        return TakenUp(None if finished else Run.open(directory), directory, others)
    try:
        found = newest(root, settings, argv)
    except ClipxError as error:
        told(error)
        raise
    told(found and (found.directory, found.run is None, OmegaConf.to_container(found.settings)))
    return found


def settings_of(directory: Path) -> DictConfig:
    """The configuration that a run began with.

    Raises:
        ClipxError: its file cannot be read.
    """
    from omegaconf import DictConfig, OmegaConf

    path = directory / "config.yaml"
    try:
        stored = OmegaConf.load(path)
    except Exception as error:  # YAML's errors are of many types
        raise ClipxError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(stored, DictConfig):
        raise ClipxError(f"{path} is not a configuration")
    OmegaConf.set_struct(stored, True)
    return stored


def _changes(stored: Any, wanted: Any) -> Changes:
    return {key: (old, new) for key, (old, new) in config.differences(stored, wanted).items()}


def _asked(
    command: str,
    stored: DictConfig,
    known: Sequence[str],
    given: Sequence[str],
    config_dir: str | None,
) -> Changes:
    """In what the command line asks for something else than the run has.

    What only the cards and defaults have become since then is not asked for.
    """
    merged = {_key(override): override for override in [*known, *given]}
    with config_errors.translated(command, given, config_dir):
        config_errors.check_types(command, given, config_dir)
        now, after = (
            _composed(command, overrides, config_dir) for overrides in (known, list(merged.values()))
        )
    keys = tuple(_key(override) for override in given)
    changes = _changes(stored, after)
    since = _changes(now, after)
    return {key: change for key, change in changes.items() if key in since or _is_under(key, keys)}


def _composed(command: str, overrides: Sequence[str], config_dir: str | None) -> Any:
    from omegaconf import OmegaConf

    composed, chosen = config.compose_prepared(command, overrides, config_dir)
    return OmegaConf.to_container(
        config.named(composed, command, chosen), resolve=True
    )  # what is not given yet stays ???


def _changed(stored: DictConfig, changes: Changes) -> DictConfig:
    """The run's configuration with some keys changed, which is said."""
    from omegaconf import OmegaConf, open_dict

    for key, (old, new) in changes.items():
        console.info(f"{key}: {old} -> {new} from here on")
        with open_dict(stored):
            OmegaConf.update(stored, key, new)
    return stored


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_under(key: str, asked: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in asked)


def _listed(changes: Changes) -> str:
    return ", ".join(f"{key} ({old} -> {new})" for key, (old, new) in list(changes.items())[:8])
