"""Exceptions of Hydra and OmegaConf, retold as what the user did wrong and what would be right."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from clipx import cards, config
from clipx.errors import ClipxError, did_you_mean

ConfigDir = str | os.PathLike[str] | None


@contextmanager
def translated(command: str, overrides: Sequence[str], config_dir: ConfigDir) -> Iterator[None]:
    """Raise a ClipxError in place of any exception with which Hydra or OmegaConf rejects a configuration."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, command, overrides, config_dir) from error


def explain(error: Exception, command: str, overrides: Sequence[str], config_dir: ConfigDir) -> ClipxError:
    """The ClipxError that says what ``error`` means for the person who typed ``overrides``."""
    import yaml
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import errors as omegaconf_errors

    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ClipxError(f"{mark.name}, line {mark.line + 1}: not valid YAML", hint=error.problem)
    if isinstance(error, OverrideParseException):
        return ClipxError(
            f"cannot read the override {error.override!r}",
            hint="overrides look like key=value; quote special characters: 'labels=[cat, dog]'",
        )
    if isinstance(error, MissingConfigException):
        return _missing_choice(error, command, config_dir)
    cause = error.__cause__
    text = str(error)
    for inner in (error, cause):
        if isinstance(inner, omegaconf_errors.InterpolationKeyError):
            return ClipxError(
                f"{inner.full_key or 'a value'} refers to a key that does not exist: {_first_line(inner)}",
                hint=f"clipx {command} --show-config prints all keys".replace("  ", " "),
            )
    if match := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return _unknown_key(match[1], command, overrides, config_dir)
    if match := re.search(
        r"Ambiguous value for argument '([^']*)'|Sweep parameters '([^']*)' requires", text
    ):
        given = match[1] or match[2]
        key, _, value = given.partition("=")
        shown = "--method " + value if key == config.method_key(command) else given
        return ClipxError(
            f"{shown} has several values",
            hint=f"add --multirun to run each of them, or write a list as {key.split('@')[0]}=[{value}]",
        )
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return ClipxError(f"{match[1]} exists already", hint=f"leave out the +: {match[1]}=...")
    if match := re.search(r"looks like a config group override, but config group '([^']+)'", text):
        return ClipxError(f"no group {match[1]!r}", hint=did_you_mean(match[1], config.groups(config_dir)))
    if match := re.search(r"Error merging override (.+)", text):
        return ClipxError(f"{match[1]} does not fit", hint=_first_line(cause) if cause else None)
    return ClipxError(_first_line(error) or type(error).__name__, hint=_first_line(cause) if cause else None)


def check_syntax(override: str) -> None:
    """Raise Hydra's OverrideParseException where an override cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    OverridesParser.create().parse_overrides([override])


def check_types(command: str, overrides: Sequence[str], config_dir: ConfigDir) -> None:
    """Compare the kind of each given value with that of the default it replaces.

    Raises:
        ClipxError: text where a number belongs, one value where a list belongs, and the like.
    """
    known = {*config.groups(config_dir), f"method/{command}"}
    given = [(key, values) for key, values in map(_parsed, overrides) if key is not None and key not in known]
    if not given:
        return
    base = _base(command, overrides, config_dir)
    if base is not None:
        _check_given(base, given)


def check_against(base: Any, overrides: Sequence[Any]) -> None:
    """As ``check_types``, with the defaults at hand.

    Args:
        base: the configuration in which only groups were chosen.
        overrides: of single values, as Hydra's parser gives them.

    Raises:
        ClipxError: as ``check_types``.
    """
    _check_given(base, [(key, values) for key, values in map(_replaced, overrides) if key is not None])


def _check_given(base: Any, given: Sequence[tuple[str, list[Any]]]) -> None:
    for key, values in given:
        default = default_of(base, key)
        for value in values:
            wanted = misfit(default, value)
            if wanted:
                hint = f"the default is {key}={default}"
                if isinstance(default, dict):
                    hint = "valid: " + ", ".join(f"{key}.{name}" for name in default)
                raise ClipxError(f"{key}={value}: expected {wanted}", hint=hint)


def build_error(node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> Exception:
    """What a failed ``instantiate`` means: a ClipxError for a user's mistake, or the part's own exception."""
    cause = error.__cause__
    if isinstance(cause, ClipxError):
        return cause
    target = str(node["_target_"])
    found = re.search(r"(?:call to|instantiating|locating|resolving) target? ?'?([\w.]+)'?", str(error))
    part = _locate(target)
    if found and found[1] != target and (part is None or _locate(found[1]) is not part):
        target = found[1]  # a part inside the part; the same part may also just live in another module
        part = _locate(target)
    if part is None:
        return ClipxError(f"_target_ {target} cannot be imported", hint=_target_hint(target))
    if isinstance(cause, TypeError) and target == str(node["_target_"]):
        arguments = {str(key): None for key in node if not str(key).startswith("_")} | dict.fromkeys(kwargs)
        mistake = _argument_mistake(part, args, arguments, target)
        if mistake:
            return mistake
    return cause if isinstance(cause, Exception) else error


def _missing_choice(error: Any, command: str, config_dir: ConfigDir) -> ClipxError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(set(error.options or []) | set(config.choices(group, config_dir) if group else []))
    if group == f"method/{command}":
        elsewhere = [
            card.usage for card in cards.list_cards(config.conf_dirs(config_dir)) if card.name == name
        ]
        hint = f"did you mean {' or '.join(elsewhere)}? " if elsewhere else ""
        return ClipxError(f"no method {name!r} for {command}", hint=hint + did_you_mean(name, options))
    if group.startswith("hydra/"):
        return ClipxError(
            f"no {group} {name!r}",
            hint=f'{did_you_mean(name, options)}; more come with pip install "clipx[sweep]"',
        )
    if not group:
        return ClipxError(f"no configuration {name!r}", hint=did_you_mean(name, options))
    return ClipxError(f"no choice {name!r} for {group}", hint=did_you_mean(name, options))


def _unknown_key(key: str, command: str, overrides: Sequence[str], config_dir: ConfigDir) -> ClipxError:
    known = config.groups(config_dir)
    base = _base(command, overrides, config_dir)
    leaves = sorted(config.flat(base)) if base is not None else []
    leaves = [leaf for leaf in leaves if not leaf.startswith("card.") and "._" not in leaf]
    parents = {leaf.rsplit(".", depth)[0] for leaf in leaves for depth in range(1, leaf.count(".") + 1)}
    last = key.rsplit(".", 1)[-1]
    near = [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] == last]
    above = key.rpartition(".")[0]
    beside = {leaf.rsplit(".", 1)[-1]: leaf for leaf in leaves if leaf.rpartition(".")[0] == above}
    near = near or [beside[name] for name in difflib.get_close_matches(last, beside)]
    near = near or difflib.get_close_matches(key, [*leaves, *parents, *known])
    parent = key.rpartition(".")[0]
    while parent and parent not in parents:
        parent = parent.rpartition(".")[0]
    siblings = [leaf for leaf in leaves if leaf.startswith(f"{parent}.")] if parent else []
    valid = siblings or sorted({leaf.split(".")[0] for leaf in leaves} | set(known))
    listed = ", ".join(valid[:20]) + (", ..." if len(valid) > 20 else "")
    question = " or ".join(dict.fromkeys(near[:3]))
    hint = (f"did you mean {question}? " if question else "") + f"valid: {listed} (+{key}=... adds a new key)"
    return ClipxError(f"no key {key!r} in the configuration of {command}", hint=hint)


def _base(command: str, overrides: Sequence[str], config_dir: ConfigDir) -> Any:
    """The configuration before single values were changed: only the choices of groups applied."""
    known = {*config.groups(config_dir), f"method/{command}"}
    chosen = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+~").split("@")[0] in known:
            simple = not any(mark in value for mark in "()[]{}'\"")
            chosen.append(f"{key}={value.split(',')[0].strip()}" if simple else override)
    return _composed(command, tuple(chosen), None if config_dir is None else os.fspath(config_dir))


@functools.lru_cache(maxsize=16)  # the jobs of a sweep over values share it
def _composed(command: str, overrides: tuple[str, ...], config_dir: str | None) -> Any:
    try:
        return config.compose_prepared(command, overrides, config_dir)[0]
    except Exception:
        return None  # the choices themselves are wrong: that error is told elsewhere


def _parsed(override: str) -> tuple[str | None, list[Any]]:
    """The key and value (or swept values) of an override that replaces a single value; else (None, [])."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return _replaced(OverridesParser.create().parse_override(override))


def _replaced(parsed: Any) -> tuple[str | None, list[Any]]:
    from hydra.core.override_parser.types import ChoiceSweep, QuotedString

    if parsed.is_add() or parsed.is_force_add() or parsed.is_delete() or parsed.package is not None:
        return None, []
    if parsed.key_or_group.startswith("hydra"):
        return None, []
    value = parsed.value()
    if isinstance(value, ChoiceSweep):
        plain = [item.text if isinstance(item, QuotedString) else item for item in value.list]
        return parsed.key_or_group, plain
    return (None, []) if parsed.is_sweep_override() else (parsed.key_or_group, [value])


def default_of(base: Any, key: str) -> Any:
    """The value of a key, in plain types; None where there is none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.select(base, key)
    except OmegaConfBaseException:
        return None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def misfit(default: Any, value: Any) -> str | None:
    """What was expected, where ``value`` cannot stand for ``default``."""
    if default is None or value is None or (isinstance(value, str) and ("${" in value or value == "???")):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int | float):
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if isinstance(default, list):
        if _is_whole(value) and default and all(map(_is_whole, default)):
            return None  # seed=1 where seed: [1, 2, 3]; what needs both ends of a range says so itself
        return None if isinstance(value, list) else "a list, such as [a, b]"
    if isinstance(default, dict):
        return None if isinstance(value, dict) else "a group of keys"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _locate(target: str) -> Any:
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception:
        return None


def _target_hint(target: str) -> str:
    """The first thing wrong on the way to ``target``: a module that is not there, or a name it lacks."""
    module_name, _, attribute = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return f"{error}; a module of your own goes into the folder given with --config-dir"
    except ValueError:
        return "a target is package.module.Name"
    try:
        getattr(module, attribute)
    except AttributeError:
        public = [name for name in vars(module) if not name.startswith("_")]
        return f"{module_name} has no {attribute!r}; {did_you_mean(attribute, public)}"
    return f"{module_name} fails while it is imported"


def _argument_mistake(
    part: Any, args: tuple[Any, ...], arguments: dict[str, Any], target: str
) -> ClipxError | None:
    try:
        signature = inspect.signature(part)
        signature.bind(*args, **arguments)
    except ValueError:
        return None
    except TypeError as error:
        valid = [
            name
            for name, kind in signature.parameters.items()
            if kind.kind not in (kind.VAR_KEYWORD, kind.VAR_POSITIONAL)
        ]
        unknown = [name for name in arguments if name not in valid]
        if unknown:
            return ClipxError(
                f"{target} has no argument {unknown[0]!r}", hint=did_you_mean(unknown[0], valid)
            )
        return ClipxError(f"{target}: {error}", hint=f"its arguments: {', '.join(valid)}")
    return None


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().split("\n")[0] if error is not None else ""
