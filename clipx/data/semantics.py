"""What captions mean: unit vectors that lie near each other where captions say much the same."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.data.caption_store import CaptionStore
from clipx.data.text_changes import stop_words
from clipx.errors import ClipxError, missing_extra
from clipx.hub import cache_only_when_unreachable

Semantics = Callable[[Sequence[str]], Tensor]
"""Captions to unit rows float32 ``[N, S]``."""

OFFLINE = "semantics=words compares captions by their words, and needs no model"
_WORDS = re.compile(r"\w+(?:[-']\w+)*")


class HashedWords:
    """Captions as the words that they hold, stop words left out: no model, no network, any language.

    Every word has a place that its hash gives, so that no vocabulary is needed; two captions have the cosine
    of their word counts. It knows no synonyms and no order of words.

    Args:
        width: places, 2 or more: with few of them, words meet in one by chance.

    Raises:
        ClipxError: ``width`` below 2.

    Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", without signs, so
        that no cosine is below 0.
    """

    def __init__(self, width: int = 1024) -> None:
        if width < 2:
            raise ClipxError(f"semantics.width={width} must be 2 or more")
        self.width = width

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Unit rows float32 ``[N, width]``; a caption without words stands for itself."""
        rows = np.zeros((len(captions), self.width), dtype=np.float32)
        for row, caption in zip(rows, captions, strict=True):
            words = _WORDS.findall(caption.lower())
            for word in [word for word in words if word not in stop_words()] or words or [caption]:
                row[_place(word, self.width)] += 1
        return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class SentenceEncoder:
    """Captions as a frozen sentence encoder of the Hugging Face hub embeds them, remembered by their hash.

    The tokens' last states are averaged, as ``sentence-transformers`` does for its models named all-*.

    Args:
        name: on the hub, or a folder.
        remember: keep what was embedded in ``$CLIPX_CACHE/captions`` for the next epoch and the next run.

    Raises:
        ClipxError: transformers is missing, or the encoder cannot be had; it names what works offline.

    Source: Reimers and Gurevych 2019, "Sentence-BERT", section 3.
    """

    def __init__(self, name: str = "sentence-transformers/all-MiniLM-L6-v2", remember: bool = True) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            missing = missing_extra("transformers", "transformers")
            raise ClipxError(missing.message, hint=f"{missing.hint}; or {OFFLINE}") from error
        try:
            with cache_only_when_unreachable():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
                self.model: Any = AutoModel.from_pretrained(name).eval().requires_grad_(False)
        except Exception as error:  # not on the hub, no network, no such folder, broken files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ClipxError(f"cannot get the sentence encoder {name}: {reason}", hint=OFFLINE) from error
        weights = hashlib.blake2b(repr(sorted(self.model.config.to_dict().items())).encode(), digest_size=8)
        for key, value in sorted(self.model.state_dict().items()):
            weights.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        self.store = CaptionStore(weights.hexdigest(), self.model.config.hidden_size) if remember else None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Unit rows float32 ``[N, S]``, S the encoder's width."""
        if self.store is None:
            return self.embed(captions)
        return self.store.filled(captions, self.embed)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Unit rows float32 ``[N, S]``, not remembered."""
        tokens = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        states = self.model(**tokens).last_hidden_state
        seen = tokens["attention_mask"][..., None].to(states.dtype)
        return torch.nn.functional.normalize((states * seen).sum(1) / seen.sum(1).clamp_min(1), dim=-1)


def _place(word: str, width: int) -> int:
    return (
        int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % width
    )
