"""A batch as objectives see it: embedded on first use, once a field, however many objectives ask."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.errors import ClipxError
from clipx.models.clip import CLIP, unit_rows
from clipx.models.patches import embed_with_patches, patch_mean


class Encoded:
    """Embeddings of a batch.

    Args:
        clip: the model.
        batch: images uint8 ``[B, 3, H, W]``, token ids int64 ``[B, L]``, on the model's device.
        embeddings: by field, where they are known already.
        progress: share of the training that is done, a scalar in [0, 1), for weights that change on the way.
    """

    def __init__(
        self,
        clip: CLIP,
        batch: dict[str, Any],
        embeddings: Mapping[str, Tensor] | None = None,
        progress: Tensor | float = 0.0,
    ) -> None:
        self.clip = clip
        self.batch = batch
        self.progress = progress
        self._cache = dict(embeddings or {})
        self._patches: dict[str, Tensor] = {}
        self._made: dict[Any, Any] = {}
        kind = clip.device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def __getitem__(self, field: str) -> Any:
        """A raw field of the batch."""
        if field not in self.batch:
            raise ClipxError(f"the batch has no field {field!r}, only {', '.join(sorted(self.batch))}")
        return self.batch[field]

    def image(self, field: str = "image") -> Tensor:
        """Unit image embeddings float32 ``[B, D]`` of this process's rows."""
        if field not in self._cache:
            self._cache[field] = self.clip.encode_image(self.clip.normalize(self[field]))
        return self._cache[field]

    def patches(self, field: str = "image") -> Tensor:
        """Means of normalised patches float32 ``[B, W]`` of this process's rows, see ``patch_mean``.

        Asked for before the embeddings of the field, they come from the same pass through the tower.

        Raises:
            ClipxError: the tower does not show its patches.
        """
        if field not in self._patches:
            pooled, patches = embed_with_patches(self.clip, self.clip.normalize(self[field]))
            self._cache.setdefault(field, unit_rows(pooled))
            self._patches[field] = patch_mean(patches)
        return self._patches[field]

    def text(self, field: str = "text") -> Tensor:
        """Unit text embeddings float32 ``[B, D]`` of this process's rows."""
        if field not in self._cache:
            self._cache[field] = self.clip.encode_text(self[field])
        return self._cache[field]

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings float32 ``[N, D]`` of token ids ``[N, L]`` that are in no field.

        In the precision of the towers, which an objective that asks for it has left.
        """
        with self.precision():
            return self.clip.encode_text(tokens)

    def precision(self) -> AbstractContextManager[Any]:
        """The precision of the towers, for an objective that asks them for more than embeddings."""
        kind, dtype, enabled = self._autocast
        return torch.autocast(kind, dtype=dtype, enabled=enabled)

    def put(self, field: str, embeddings: Tensor) -> None:
        """Give unit embeddings ``[B, D]`` a name that objectives ask for them by, as for those of a field."""
        self._cache[field] = embeddings

    def once(self, owner: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, called once a batch and owner."""
        if owner not in self._made:
            self._made[owner] = make()
        return self._made[owner]

    def embeddings(self, fields: Iterable[str]) -> dict[str, Tensor]:
        """Unit embeddings float32 ``[B, D]`` of those fields that hold images or tokens, by name."""
        images = {field: self.image(field) for field in fields if field in IMAGE_FIELDS}
        return images | {field: self.text(field) for field in fields if field in TOKEN_FIELDS}

    @property
    def logit_scale(self) -> Tensor:
        """exp of the learnt log-temperature."""
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """The learnt bias of the pair logits, or None."""
        return self.clip.logit_bias
