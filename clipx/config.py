"""conf/ and the user's overrides -> one composed, checked configuration; and from its nodes, parts.

Hydra composes. What is added here: architectures, run directories and hub names as choices of ``model=``, and
errors in the user's terms before anything heavy is loaded (see config_errors).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipx import cards
from clipx.errors import ClipxError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")
_MODEL_OVERRIDE = re.compile(r"(\+{0,2}model(?:@[\w.]*)?)=(.*)", re.DOTALL)


def conf_dir() -> Path:
    """The package's own conf/: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def conf_dirs(config_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The conf directories in the order in which a name is looked up: the package's, then the user's.

    Raises:
        ClipxError: ``config_dir`` is not a directory.
    """
    if config_dir is None:
        return [conf_dir()]
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ClipxError(f"--config-dir {config_dir}: no such directory")
    return [conf_dir(), folder]


def import_from(config_dir: str | os.PathLike[str] | None) -> None:
    """Let the ``_target_`` modules that lie in the user's own directory be imported."""
    if config_dir is not None:
        folder = str(Path(config_dir).expanduser().absolute())
        if folder not in sys.path:
            sys.path.insert(0, folder)


@functools.cache
def architectures() -> tuple[str, ...]:
    """Names of the architectures that open_clip knows, without importing it."""
    spec = importlib.util.find_spec("open_clip")
    folders = (spec.submodule_search_locations if spec else None) or []
    return tuple(
        sorted(path.stem for folder in folders for path in Path(folder, "model_configs").glob("*.json"))
    )


def choices(group: str, config_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """What may stand behind ``group=``: files of conf/<group>/; for ``model``, architectures of open_clip."""
    found = {path.stem for folder in conf_dirs(config_dir) for path in (folder / group).glob("*.yaml")}
    if group == "model":
        found.update(architectures())
    return sorted(found)


def groups(config_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """The config groups that have choices: model, data, optim, ..."""
    found = {path.parent.name for folder in conf_dirs(config_dir) for path in folder.glob("*/*.yaml")}
    return sorted(found | {"model"})


def method_key(command: str) -> str:
    """The override that picks a command's method."""
    return f"method/{command}@_global_"


def prepare(
    command: str,
    overrides: Sequence[str],
    *,
    method: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    root: Path | None = None,
) -> list[str]:
    """The overrides as Hydra takes them: ``--method`` and ``method=`` translated, ``model=`` a known choice.

    Who asks for ``training.epochs`` means these, whatever steps the card has.

    Args:
        command: pretrain, zeroshot, ...
        overrides: what the user typed behind the command.
        method: the value of ``--method``; ``a,b`` sweeps with ``--multirun``.
        config_dir: the user's own conf directory.
        root: the output root, where ``model=pretrain/infonce/latest`` is looked up.

    Raises:
        ClipxError: an override is not ``key=value``, or a model that looks like a path does not exist.
    """
    known = cards.card_names(conf_dirs(config_dir), command)
    prepared = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if key == "method":
            if method is not None and method != value:
                raise ClipxError(
                    f"two methods: --method {method} and {override}", hint="leave one of them out"
                )
            method = value
        elif not separator and not override.startswith("~"):
            raise ClipxError(
                f"{override!r} is not an override", hint=_override_hint(command, override, known)
            )
        elif match := _MODEL_OVERRIDE.fullmatch(override):
            prepared.append(f"{match[1]}={_model_choices(match[2], config_dir, root)}")
        else:
            prepared.append(_readable(override))
    typed = {override.partition("=")[0] for override in prepared}
    if "training.epochs" in typed and "training.steps" not in typed:
        prepared.append("training.steps=null")  # a card may count in steps, which would win
    if method is not None:
        prepared.insert(0, f"{method_key(command)}={method}")
    return prepared


def _readable(override: str) -> str:
    """The override as Hydra can read it: a value that its grammar trips over, such as a pattern, is quoted.

    ``data.urls=shards/{0000..0099}.tar`` is a broken mapping to Hydra and a set of files to everyone else.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def reads(text: str) -> bool:
        try:
            OverridesParser.create().parse_override(text)
        except HydraException:
            return False
        return True

    key, _, value = override.partition("=")
    if any(mark in value for mark in "'\"$") or value[:1] in ("[", "{", "(") or reads(override):
        return override
    quoted = f'{key}="{value}"'
    return quoted if reads(quoted) else override


def compose(
    command: str,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    root: Path | None = None,
) -> DictConfig:
    """The configuration of one run, as the command line composes it, with ``command`` and ``method`` set.

    Raises:
        ClipxError: a wrong choice, key or value.
    """
    from clipx import config_errors

    prepared = prepare(command, overrides, method=method, config_dir=config_dir, root=root)
    with config_errors.translated(command, prepared, config_dir):
        composed, chosen = compose_prepared(command, prepared, config_dir)
        config_errors.check_types(command, prepared, config_dir)
    return named(composed, command, chosen)


def compose_prepared(
    command: str, overrides: Sequence[str], config_dir: str | os.PathLike[str] | None = None
) -> tuple[DictConfig, dict[str, Any]]:
    """Compose from overrides that went through ``prepare``; Hydra's own exceptions pass.

    Returns:
        The configuration without Hydra's node, and the choice made in every group.
    """
    import hydra
    from omegaconf import OmegaConf, open_dict

    with _hydra(config_dir):
        composed = with_architectures(
            lambda: hydra.compose(command, overrides=list(overrides), return_hydra_config=True)
        )
        chosen = OmegaConf.to_container(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
    assert isinstance(chosen, dict)
    return composed, {str(key): value for key, value in chosen.items()}


def compose_many(
    command: str,
    cells: Sequence[Sequence[str]],
    config_dir: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """The resolved configurations of many runs of a command, as plain mappings.

    Gives what ``compose`` and ``resolve`` give. Runs that choose the same method, model and data are composed
    once, and their other overrides applied to copies of that.

    Args:
        command: pretrain, zeroshot, ...
        cells: the overrides of every run, as ``prepare`` gives them.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: a wrong choice, key or value, or one that is missing.
    """
    import copy

    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from clipx import config_errors

    parser = functools.cache(lambda override: OverridesParser.create().parse_overrides([override])[0])
    known = {*groups(config_dir), f"method/{command}"}
    bases: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for overrides in cells:
        with config_errors.translated(command, overrides, config_dir):
            parsed = [parser(override) for override in overrides]
            chosen = tuple(
                override
                for override, each in zip(overrides, parsed, strict=True)
                if each.key_or_group in known
            )
            if chosen not in bases:
                bases[chosen] = _base(command, chosen, config_dir)
            composed = copy.deepcopy(bases[chosen])
            values = [each for each in parsed if each.key_or_group not in known]
            OmegaConf.set_struct(composed, True)
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
            config_errors.check_against(bases[chosen], values)
            plain = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(plain, dict)
        missing = sorted(key for key, value in flat(plain).items() if value == "???")
        if missing:
            raise _must_be_given(missing)
        found.append({str(key): value for key, value in plain.items()})
    return found


def named(config: DictConfig, command: str, chosen: dict[str, Any]) -> DictConfig:
    """Write into the configuration which command and method it is for."""
    from omegaconf import open_dict

    with open_dict(config):
        config.command = command
        config.method = chosen.get(method_key(command)) or "default"
    return config


def resolve(config: DictConfig) -> DictConfig:
    """A copy with every interpolation filled in, ready for a run.

    Raises:
        ClipxError: a value is missing, or an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf

    from clipx import config_errors

    missing = sorted(key for key, value in flat(config).items() if value == "???")
    if missing:
        raise _must_be_given(missing)
    with config_errors.translated(str(config.get("command", "")), [], None):
        resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert OmegaConf.is_dict(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved  # type: ignore[return-value]


def _base(command: str, chosen: Sequence[str], config_dir: str | os.PathLike[str] | None) -> DictConfig:
    composed, choices_made = compose_prepared(command, chosen, config_dir)
    return named(composed, command, choices_made)


def _must_be_given(keys: Sequence[str]) -> ClipxError:
    example = " ".join(f"{key}=..." for key in keys)
    return ClipxError(f"{', '.join(keys)} must be given", hint=f"add {example}")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a configuration by its dotted key; empty mappings and lists are leaves."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config)
    if isinstance(config, dict) and config:
        leaves: dict[str, Any] = {}
        for key, value in config.items():
            leaves.update(flat(value, f"{prefix}.{key}" if prefix else str(key)))
        return leaves
    return {prefix: config}


def differences(*configs: Any) -> dict[str, list[Any]]:
    """The keys in which configurations differ, with each one's value (None where the key is absent)."""
    leaves = [flat(config) for config in configs]
    keys = sorted(set().union(*leaves))
    rows = {key: [leaf.get(key) for leaf in leaves] for key in keys}
    present = {key: [key in leaf for leaf in leaves] for key in keys}
    return {
        key: values
        for key, values in rows.items()
        if not all(present[key]) or any(value != values[0] for value in values)
    }


def build(node: Any, *args: Any, **kwargs: Any) -> Any:
    """The part that a node's ``_target_`` names, made with the node's arguments and ``kwargs``.

    Lists and mappings arrive as plain Python ones.

    Raises:
        ClipxError: the node has no target, the target does not exist, or an argument does not fit it.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from clipx import config_errors

    if node is None or "_target_" not in node:
        raise ClipxError(
            "this part of the configuration has no _target_", hint="_target_: package.module.Class"
        )
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        raise config_errors.build_error(node, args, kwargs, error) from error.__cause__


@contextmanager
def _hydra(config_dir: str | os.PathLike[str] | None) -> Iterator[None]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    folders = conf_dirs(config_dir)
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(folders[0]), version_base="1.3", job_name="clipx"):
            for folder in folders[1:]:
                _append_search_path(folder)
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _append_search_path(folder: Path) -> None:
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    # As hydra.main does for its --config-dir, and in the same place of the order.
    loader = GlobalHydra.instance().config_loader()
    path = loader.get_search_path()
    path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema", path=None))
    loader.repository.initialize_sources(path)  # type: ignore[attr-defined]


def with_architectures(compose: Callable[[], T]) -> T:
    """The result of a composition in which every open_clip architecture is a choice of ``model``.

    Making all of them choices beforehand costs a tenth of a second; so one is added when it is found missing.
    """
    from hydra.errors import MissingConfigException

    offered = set()
    while True:
        try:
            return compose()
        except MissingConfigException as error:
            group, _, name = (error.missing_cfg_file or "").rpartition("/")
            if group != "model" or name not in architectures() or name in offered:
                raise
            offered.add(name)
            _offer_model(name, name)


def _offer_model(choice: str, name: str) -> None:
    from hydra.core.config_store import ConfigStore

    node = {**dict.fromkeys(_model_keys()), "name": name}
    ConfigStore.instance().store(group="model", name=choice, node=node)


@functools.cache
def _model_keys() -> tuple[str, ...]:
    """What a model can be told, from conf/model/tiny.yaml, so that every choice takes the same overrides."""
    import yaml

    return tuple(yaml.safe_load((conf_dir() / "model" / "tiny.yaml").read_text(encoding="utf-8")))


def _model_choices(value: str, config_dir: str | os.PathLike[str] | None, root: Path | None) -> str:
    known = set(choices("model", config_dir))
    if value in known or not value or any(mark in value for mark in "()[]{}'\"$"):
        for name in architectures():
            if name == value or "(" in value:  # glob(ViT-*) sweeps over what is on offer
                _offer_model(name, name)
        return value
    if Path(value).expanduser().exists():
        return _model_choice(value, known, root)
    return ",".join(_model_choice(part.strip(), known, root) for part in value.split(","))


def _model_choice(value: str, known: set[str], root: Path | None) -> str:
    if value in known or value in ("", "null", "???"):
        if value in architectures():
            _offer_model(value, value)
        return value
    if value.startswith(("hf-hub:", "local-dir:")):
        return _registered(value)
    path = Path(value).expanduser()
    if path.exists():
        return _registered(str(path.absolute()))
    is_run_name = re.fullmatch(r"(?:[\w.-]+/){0,2}(?:latest|v\d{4,})", value)
    if root is not None and (is_run_name or value.count("/") == 1):
        from clipx.runs import find_run

        try:
            return _registered(str(find_run(root, value, holding="model")))
        except ClipxError:
            if is_run_name:
                raise
    if "/" in value or os.sep in value or value.startswith("."):
        raise ClipxError(
            f"model={value}: no such file or directory",
            hint="a run (pretrain/infonce/latest), a model directory, hf-hub:ORG/NAME, or an architecture; "
            + did_you_mean(Path(value).name, known),
        )
    return value


def _registered(name: str) -> str:
    choice = (
        re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    )
    _offer_model(choice, name)
    return choice


def _override_hint(command: str, word: str, methods: Sequence[str]) -> str:
    if word in methods:
        return f"did you mean --method {word}? overrides look like key=value: optim.lr=1e-4"
    return f"overrides look like key=value: optim.lr=1e-4 (clipx {command} --show-config prints all keys)"
