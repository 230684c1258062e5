"""A fitted adapter as one safetensors file: tensors as tensors, all else in its JSON header."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.adapters.protocol import arguments, learnt
from clipx.errors import ClipxError
from clipx.files import replacing

_KEY = "clipx_adapter"
_HOME = "clipx.adapters"


def save(adapter: Any, path: Path | str) -> None:
    """Store a fitted adapter, atomically.

    Args:
        adapter: fitted; what it learnt is tensors, dicts of tensors, or what JSON holds, as its
            hyperparameters are.
        path: of the file.

    Raises:
        ClipxError: if it is not fitted, or the file cannot be written.
    """
    from safetensors.torch import save_file

    state = learnt(adapter)
    if not state:
        raise ClipxError(f"this {type(adapter).__name__} is not fitted: there is nothing to save")
    tensors, values = _split(state)
    header = {
        "class": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        "arguments": _plain(arguments(adapter)),
        "values": _plain(values),
    }
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as fresh:
            save_file(tensors, fresh, metadata={_KEY: json.dumps(header)})
    except OSError as error:
        raise ClipxError(f"cannot write {path}: {error.strerror or error}") from error


def load(path: Path | str, *, device: torch.device | str = "cpu", modules: Sequence[str] = ()) -> Any:
    """Read an adapter that ``save`` wrote.

    Args:
        path: of the file.
        device: where its tensors go.
        modules: modules outside ``clipx.adapters`` whose classes may be constructed, such as the user's own.

    Raises:
        ClipxError: not such a file, or its class lies elsewhere: a file must not choose what code runs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ClipxError(f"cannot read an adapter from {path}: {error}") from error
    try:
        header = json.loads(metadata[_KEY])
        module, _, name = header["class"].rpartition(".")
        given, values = dict(header["arguments"]), dict(header["values"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ClipxError(f"{path} is not an adapter that clipx saved") from error
    if not (module.startswith(f"{_HOME}.") or module in modules):
        raise ClipxError(
            f"{path} names the class {module}.{name}, outside {_HOME}",
            hint="add the folder it comes from with --config-dir, if you trust it",
        )
    try:
        cls = getattr(importlib.import_module(module), name)
        adapter = cls(**given)
    except (ImportError, AttributeError, TypeError) as error:
        raise ClipxError(f"{path} was saved by another version of clipx: {error}") from error
    vars(adapter).update(_joined(tensors), **values)
    return adapter


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, those of a dict by ``name.key``, and all else."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict) and all(isinstance(each, Tensor) for each in value.values()):
            tensors |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            values[name] = value
    # Tensors that share memory, as views of one text classifier do, are stored one by one.
    own = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return own, values


def _joined(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Tensors, those with a dot in their name in the dicts that they came from."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        attribute, dot, key = name.partition(".")
        if dot:
            found.setdefault(attribute, {})[key] = value
        else:
            found[attribute] = value
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Sequences of any kind (a card gives its own) as lists."""
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in values.items()
    }
