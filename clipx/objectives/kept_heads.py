"""Heads that stay of use after training: as an objective gives them, on disk beside the model, and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from clipx.errors import ClipxError
from clipx.models.clip import with_own_memory
from clipx.objectives.heads import mlp

HEADS_FILE = "heads.safetensors"
"""In a run's ``model/``; open_clip, which looks for its own weights by name, does not see it."""

_DESCRIPTION = "clipx_heads"


@dataclass(frozen=True)
class KeptHeads:
    """A head for images and one for texts, which take what the towers give before it becomes a unit row.

    Attributes:
        image: as ``mlp(widths)`` makes it: ``[B, widths[0]] -> [B, widths[-1]]``, not normalised.
        text: likewise.
        widths: of the input, of the hidden layers, of the output.
        logit_scale: the inverse temperature that what they give was compared at.
    """

    image: nn.Sequential
    text: nn.Sequential
    widths: Sequence[int]
    logit_scale: float


def save_heads(folder: Path, heads: Mapping[str, KeptHeads]) -> Path:
    """Write heads, by the names of the objectives that keep them, as one file ``HEADS_FILE``.

    Weights are tensors ``<objective>.image.<name>`` and ``<objective>.text.<name>``; widths and inverse
    temperatures stand as JSON in the header.
    """
    tensors = {
        f"{name}.{tower}.{key}": value
        for name, each in heads.items()
        for tower, head in (("image", each.image), ("text", each.text))
        for key, value in head.state_dict().items()
    }
    described = {
        name: {"widths": list(each.widths), "logit_scale": each.logit_scale} for name, each in heads.items()
    }
    path = folder / HEADS_FILE
    metadata = {"format": "pt", _DESCRIPTION: json.dumps(described)}
    save_file(with_own_memory(tensors), path, metadata=metadata)
    return path


def heads_file(name: str) -> Path | None:
    """The heads of a run or of a model folder; None where ``name`` is neither, or nothing was kept there."""
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    places = (folder / HEADS_FILE, folder / "model" / HEADS_FILE)
    return next((path for path in places if path.is_file()), None)


def load_heads(path: Path) -> dict[str, KeptHeads]:
    """Read what ``save_heads`` wrote: heads by the names of their objectives, in evaluation mode, on the CPU.

    Raises:
        ClipxError: it cannot be read, or is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        described = json.loads(metadata[_DESCRIPTION])
        return {
            str(name): KeptHeads(
                image=_head(each["widths"], tensors, f"{name}.image."),
                text=_head(each["widths"], tensors, f"{name}.text."),
                widths=each["widths"],
                logit_scale=float(each["logit_scale"]),
            )
            for name, each in described.items()
        }
    except (OSError, SafetensorError) as error:
        raise ClipxError(f"cannot read heads from {path}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, ClipxError) as error:
        raise ClipxError(f"{path} does not hold heads that clipx saved") from error


def _head(widths: Sequence[int], tensors: Mapping[str, torch.Tensor], prefix: str) -> nn.Sequential:
    head = mlp(widths)
    own = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    head.load_state_dict(own)
    return head.eval()
