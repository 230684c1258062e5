"""A batch as objectives see it: embedded on first use, once a field, however many objectives ask."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from clipx.data.fields import IMAGE_FIELDS, TOKEN_FIELDS
from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.comparison import Comparison
from clipx.models.patches import embed_with_patches, patch_mean
from clipx.models.text import encode_hidden, read_out, token_tower


class Encoded:
    """Embeddings of a batch.

    Args:
        clip: the model.
        batch: images uint8 ``[B, 3, H, W]``, token ids int64 ``[B, L]``, on the model's device.
        embeddings: by field, where they are known already.
        progress: share of the training that is done, a scalar in [0, 1), for weights that change on the way.
        features: by field, what the towers give before it becomes rows, where it is known already.

    Attributes:
        notes: figures that objectives report, by name.
    """

    def __init__(
        self,
        clip: CLIP,
        batch: dict[str, Any],
        embeddings: Mapping[str, Tensor] | None = None,
        progress: Tensor | float = 0.0,
        features: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.clip = clip
        self.batch = batch
        self.progress = progress
        self._cache = dict(embeddings or {})
        self.notes: dict[str, Tensor] = {}
        self._features = dict(features or {})
        self._tokens: dict[str, Tensor] = {}
        self._patches: dict[str, Tensor] = {}
        self._made: dict[Any, Any] = {}
        self._given: dict[str, Any] = {}
        kind = clip.device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def __getitem__(self, field: str) -> Any:
        """A raw field of the batch."""
        if field not in self.batch:
            raise ClipxError(f"the batch has no field {field!r}, only {', '.join(sorted(self.batch))}")
        return self.batch[field]

    def image(self, field: str = "image") -> Tensor:
        """Rows of images float32 ``[B, F]``, see ``CLIP``: of a cosine unit rows ``[B, D]``."""
        if field not in self._cache:
            if field in self._features:
                self._cache[field] = self.clip.comparison.image_rows(self._features[field])
            else:
                self._cache[field] = self.clip.encode_image(self.clip.normalize(self[field]))
        return self._cache[field]

    def patches(self, field: str = "image") -> Tensor:
        """Means of normalised patches float32 ``[B, W]`` of this process's rows, see ``patch_mean``.

        Asked for before the embeddings of the field, they come from the same pass through the tower.

        Raises:
            ClipxError: the tower does not show its patches.
        """
        if field not in self._patches:
            self._patches[field] = patch_mean(self.image_tokens(field))
        return self._patches[field]

    def image_tokens(self, field: str = "image") -> Tensor:
        """Patches ``[B, N, W]`` in the precision of the tower, see ``embed_with_patches``.

        Asked for before the embeddings of the field, they come from the same pass through the tower.

        Raises:
            ClipxError: the tower does not show its patches.
        """
        if field not in self._tokens:
            pooled, self._tokens[field] = embed_with_patches(self.clip, self.clip.normalize(self[field]))
            self._features.setdefault(field, _wide(pooled))
        return self._tokens[field]

    def text_tokens(self, field: str = "text") -> Tensor:
        """Hidden states ``[B, L, W]`` of every token, in the precision of the tower, before its final norm.

        Asked for before the embeddings of the field, they come from the same pass through the tower.

        Raises:
            ClipxError: the tower does not show its tokens.
        """
        if field not in self._tokens:
            tower, tokens = token_tower(self.clip), self[field]
            hidden = encode_hidden(tower, tower.token_embedding(tokens))
            self._features.setdefault(field, _wide(read_out(tower, hidden, tokens)))
            self._tokens[field] = hidden
        return self._tokens[field]

    def text(self, field: str = "text") -> Tensor:
        """Rows of texts float32 ``[B, F]``, likewise."""
        if field not in self._cache:
            if field in self._features:
                self._cache[field] = self.clip.comparison.text_rows(self._features[field])
            else:
                self._cache[field] = self.clip.encode_text(self[field])
        return self._cache[field]

    def features(self, field: str) -> Tensor:
        """What the tower gives of a field before it becomes rows, float32 ``[B, D]``.

        Asked for before the rows of the field, they come from the same pass through the tower.
        """
        if field not in self._features:
            if field in IMAGE_FIELDS:
                found = self.clip.encode_image(self.clip.normalize(self[field]), normalize=False)
            else:
                found = self.clip.encode_text(self[field], normalize=False)
            self._features[field] = _wide(found)
        return self._features[field]

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """Rows float32 ``[N, F]`` of token ids ``[N, L]`` that are in no field.

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

    def give(self, name: str, value: Any) -> None:
        """Leave something for other objectives that need it."""
        self._given[name] = value

    def given(self, name: str) -> Any:
        """What an objective has given by this name.

        Raises:
            ClipxError: none has.
        """
        if name not in self._given:
            raise ClipxError(f"no objective gives {name!r}")
        return self._given[name]

    def note(self, name: str, value: Tensor) -> None:
        """Report a figure, a scalar, with the terms of the loss that it is no part of."""
        self.notes[name] = value.detach()

    def once(self, owner: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, called once a batch and owner."""
        if owner not in self._made:
            self._made[owner] = make()
        return self._made[owner]

    def embeddings(self, fields: Iterable[str]) -> dict[str, Tensor]:
        """Rows float32 ``[B, F]`` of those fields that hold images or tokens, by name."""
        images = {field: self.image(field) for field in fields if field in IMAGE_FIELDS}
        return images | {field: self.text(field) for field in fields if field in TOKEN_FIELDS}

    @property
    def comparison(self) -> Comparison:
        """How an image and a text are compared."""
        return self.clip.comparison

    @property
    def logit_scale(self) -> Tensor:
        """exp of the learnt log-temperature."""
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """The learnt bias of the pair logits, or None."""
        return self.clip.logit_bias


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
