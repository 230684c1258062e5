"""A fitted adapter, the model and the class names it belongs to: on images, over other classes, on disk."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.adapters import saving
from clipx.errors import ClipxError
from clipx.features.encode import TOWERS, FeatureSet
from clipx.files import write_atomic
from clipx.inference.zero_shot import embed_images, zero_shot_classifier
from clipx.models.clip import CLIP
from clipx.tasks.classification import Outcomes, join, outcomes

FOLDER = "adapter"
"""Folder of a run that holds its fitted adapters."""

_DESCRIPTION = "adapter.json"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Adapted:
    """An adapter fitted on the features of ``clip`` for the classes ``names``.

    ``columns`` are the classes asked for, as places in what the adapter was fitted for; None for all.
    ``clip`` is the model as it was before; ``tower`` the one that embeds images (an adapter that trained the
    towers brings its own).
    """

    clip: CLIP
    adapter: Any
    names: list[str]
    templates: list[str]
    columns: list[int] | None = None
    tower: CLIP = field(init=False)

    def __post_init__(self) -> None:
        if hasattr(self.adapter, "attach"):
            self.adapter.attach(self.clip)
        own = self.adapter.adapted(self.clip) if hasattr(self.adapter, "adapted") else self.clip
        object.__setattr__(self, "tower", own)

    @property
    def bank(self) -> str:
        """What the adapter takes of an image, as ``encode`` calls it."""
        return self.adapter.needs if self.adapter.needs in ("pre_projection", "patches") else "image"

    def rows(self, features: FeatureSet) -> Tensor:
        """What the adapter takes, of a feature set with this ``bank``."""
        return rows_of(features, self.adapter.needs)

    def logits(self, rows: Tensor) -> Tensor:
        """Logits ``[M, C]`` of rows ``[M, D]``, on the CPU, computed some rows at a time."""
        parts = []
        with torch.no_grad():
            for part in rows.split(_ROWS_AT_ONCE):
                found = self.adapter.logits(part.to(self.clip.device)).float().cpu()
                parts.append(found if self.columns is None else found[:, self.columns])
        return torch.cat(parts) if parts else torch.empty(0, len(self.names))

    def outcomes(self, rows: Tensor, labels: Tensor) -> Outcomes:
        """What becomes of rows ``[M, D]`` with labels int64 ``[M]`` (-1: passed over)."""
        return join(
            outcomes(self.logits(part), truth)
            for part, truth in zip(rows.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True)
        )

    def probabilities(self, images: Sequence[Any], *, batch_size: int = 64) -> Tensor:
        """The probability ``[M, C]`` of every class for images (PIL, or uint8 ``[H, W, 3]``)."""
        rows = embed_images(self.tower, images, batch_size=batch_size, embed=TOWERS[self.bank])
        return self.logits(rows).softmax(dim=-1)

    def over(self, names: Sequence[str], templates: Sequence[str] | None = None) -> "Adapted | None":
        """The same adapter for other classes; None where it has no answer for them.

        Classes that it was fitted for are picked out of its own by name, whatever their case. Others are
        possible where the adapter can make a classifier from their names (``for_classes``).
        """
        wanted = [str(name) for name in names]
        known: dict[str, list[int]] = {}
        for place, name in enumerate(self.names):
            known.setdefault(name.casefold(), []).append(place)
        # ImageNet has names twice: the first of them stays the first.
        places = [own.pop(0) if (own := known.get(name.casefold())) else None for name in wanted]
        if None not in places:
            if places == list(range(len(self.names))):
                return self
            mine = self.columns or list(range(len(self.names)))
            return replace(self, names=wanted, columns=[mine[place] for place in places if place is not None])
        if not hasattr(self.adapter, "for_classes"):
            return None
        prompts = list(templates or self.templates)
        vectors = zero_shot_classifier(self.tower, wanted, prompts).to(self.clip.device)
        other = for_classes(self.adapter, vectors, clip=self.clip, class_names=wanted, templates=prompts)
        return replace(self, adapter=other, names=wanted, templates=prompts, columns=None)


def rows_of(features: FeatureSet, needs: str) -> Tensor:
    """What an adapter takes of a feature set, by its ``needs``: unit rows, those before the projection, or
    means of patches.
    """
    rows = {"pre_projection": features.pre, "patches": features.patches}.get(needs, features.image)
    assert rows is not None, "the feature set was encoded with another bank"
    return rows


def for_classes(adapter: Any, text_classifier: Tensor, **extras: Any) -> Any:
    """``adapter.for_classes`` with those extras (clip, class_names, templates) that it has a name for."""
    known = inspect.signature(adapter.for_classes).parameters
    return adapter.for_classes(
        text_classifier, **{name: value for name, value in extras.items() if name in known}
    )


def save_adapted(
    folder: Path, adapters: dict[str, Any], like: Adapted, *, model: dict[str, Any], method: str
) -> None:
    """Write fitted adapters, one file a name, and what is needed to use them.

    Args:
        folder: made where missing.
        adapters: fitted, by a name that becomes the file's (``seed-1``); the first is the one that is loaded.
        like: model, class names and templates that they share.
        model: arguments of ``clipx.models.loading.load`` that give the model.
        method: name of the card.

    Raises:
        ClipxError: as ``saving.save``.
    """
    for name, adapter in adapters.items():
        saving.save(adapter, folder / f"{name}.safetensors")
    description = {
        "method": method,
        "files": [f"{name}.safetensors" for name in adapters],
        "names": like.names,
        "templates": like.templates,
        "model": model,
        "fingerprint": like.clip.fingerprint(),
    }
    write_atomic(folder / _DESCRIPTION, json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def describe(folder: Path) -> dict[str, Any]:
    """What ``save_adapted`` wrote beside the adapters: method, files, names, templates, model, fingerprint.

    Raises:
        ClipxError: there is no such description, or it cannot be read.
    """
    path = folder / _DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("method", "files", "names", "templates", "model", "fingerprint")}
    except FileNotFoundError:
        raise ClipxError(
            f"{folder} holds no adapter", hint="adapter=RUN names a completed run of clipx adapt"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ClipxError(f"{path} cannot be read: {problem!r}") from problem


def load_adapted(
    folder: Path, clip: CLIP, *, file: str | None = None, modules: Sequence[str] = ()
) -> Adapted:
    """Read an adapter that ``save_adapted`` wrote.

    Args:
        folder: of the adapters.
        clip: the model it was fitted on.
        file: one of several, by its name; None for the first.
        modules: as ``saving.load``.

    Raises:
        ClipxError: another model, or as ``saving.load``.
    """
    described = describe(folder)
    if clip.fingerprint() != described["fingerprint"]:
        raise ClipxError(
            f"the adapter in {folder} was fitted on the features of another model",
            hint=f"it belongs to model={described['model'].get('name')} with the weights of that time",
        )
    path = folder / (file or described["files"][0])
    adapter = saving.load(path, device=clip.device, modules=modules)
    return Adapted(clip, adapter, list(described["names"]), list(described["templates"]))
