"""The model and what it minimises, as the one module that DDP, FSDP and torch.compile see."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.models.clip import CLIP
from clipx.models.comparison import check_cosine
from clipx.training.encoded import Encoded


class TrainingModule(nn.Module):
    """A CLIP and its weighted objectives.

    Heads and queues that an objective owns train and checkpoint with it.

    Args:
        clip: the model.
        objectives: name -> module with ``needs`` and ``forward(encoded) -> {name: scalar}``; one whose
            ``forward`` sees the images and texts of a batch through their pooled embeddings alone says
            ``pooled = True``, and can train with a gradient cache; one that sees the patches of some fields
            names them as ``patched``, and one that sees some before they become rows as ``unnormalised``; one
            with ``after_step(clip, progress)``, such as that of a tower that follows another, is called after
            every optimizer step; one that takes fields as they are, not embedded, names them among its needs
            and as ``raw``; one that makes embeddings of its own, which others need, names them as ``gives``
            and puts them there in ``prepare(encoded)``; one whose heads are of use after training gives them
            as ``kept``, and they are saved beside the model. One that asks the model how it compares says
            ``any_comparison = True``; any other takes rows to be unit rows, and goes with the cosine alone.
        weights: name -> factor of its terms in the sum, 1 where missing.

    Raises:
        ClipxError: an objective of the cosine, of a model that compares otherwise.
    """

    def __init__(
        self, clip: CLIP, objectives: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        for name, objective in objectives.items():
            if not getattr(objective, "any_comparison", False):
                check_cosine(
                    clip.comparison, f"the objective {name}", "infonce and siglip take any comparison"
                )
        self.clip = clip
        self.objectives = nn.ModuleDict(objectives)
        self.weights = dict(weights or {})
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    @property
    def needs(self) -> list[str]:
        """Batch fields that the objectives ask for, but for what they give each other."""
        found = {field for objective in self.objectives.values() for field in needed(objective)}
        given = {field for objective in self.objectives.values() for field in getattr(objective, "gives", ())}
        return sorted(found - given)

    @property
    def embedded(self) -> list[str]:
        """Those of them that the towers embed."""
        asked = {field for objective in self.objectives.values() for field in _embedded(objective)}
        return [field for field in self.needs if field in asked & {*IMAGE_FIELDS, *TOKEN_FIELDS}]

    @property
    def unnormalised(self) -> list[str]:
        """Those of them that an objective wants as they are before they become rows."""
        asked = {field for each in self.objectives.values() for field in getattr(each, "unnormalised", ())}
        return [field for field in self.embedded if field in asked]

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What objectives see of each field of images or tokens: rows, or what becomes of them rows."""
        encoded, early = Encoded(self.clip, batch), {*self.unnormalised} & {*batch}
        return {field: encoded.features(field) for field in early} | encoded.embeddings({*batch} - early)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Every term, unweighted, their weighted sum as ``loss``, and the figures that objectives note."""
        return self.terms(self.encoded(batch))

    def encoded(self, batch: dict[str, Any], embeddings: Mapping[str, Tensor] | None = None) -> Encoded:
        """A batch as the objectives see it; ``embeddings`` of fields, as ``embed`` gives them."""
        given = dict(embeddings or {})
        features = {field: given.pop(field) for field in self.unnormalised if field in given}
        return Encoded(self.clip, batch, given, self.progress, features)

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        """Let objectives follow an optimizer step; ``done`` in (0, 1] is the share of steps so far."""
        for objective in self.objectives.values():
            if follow := getattr(objective, "after_step", None):
                follow(self.clip, done)

    def terms(self, encoded: Encoded) -> dict[str, Tensor]:
        """What ``forward`` returns, of an encoded batch."""
        for objective in self.objectives.values():
            for field in getattr(objective, "patched", ()):
                encoded.patches(field)
        for objective in self.objectives.values():
            if prepare := getattr(objective, "prepare", None):
                prepare(encoded)
        for field in self.unnormalised:
            encoded.features(field)
        terms: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        for name, objective in self.objectives.items():
            # Softmax and log-sigmoid of logits that reach 100 need float32 whatever the towers run in.
            found = _in_float32(objective, encoded)
            terms.update(found)
            total = total + self.weights.get(name, 1.0) * torch.stack(list(found.values())).sum()
        return {**terms, **encoded.notes, "loss": total}  # type: ignore[dict-item]


def needed(objective: nn.Module) -> Sequence[str]:
    """Batch fields that an objective asks for."""
    return objective.needs  # type: ignore[return-value]


def _embedded(objective: nn.Module) -> list[str]:
    raw = getattr(objective, "raw", ())
    return [field for field in needed(objective) if field not in raw]


def _in_float32(objective: nn.Module, encoded: Encoded) -> dict[str, Tensor]:
    encoded.embeddings(_embedded(objective))
    with torch.autocast(encoded.clip.device.type, enabled=False):
        return objective(encoded)
