"""Text towers read no further than they must: a causal tower never looks past the end-of-text token."""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.model import CLIP as OpenCLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from clipx.errors import ClipxError

_STEP = 4
"""Lengths are multiples of this: few shapes to compile for."""


def causal_tower(model: nn.Module) -> Any | None:
    """The module of an open_clip model that holds a causal text transformer read out at its end token.

    Returns:
        None for any other: bidirectional, with a class token, read out elsewhere, or of another library.
    """
    tower: Any
    if type(model) is OpenCLIP:
        tower, pooling, mask = model, model.text_pool_type, model.attn_mask
    else:
        tower = getattr(model, "text", None)
        if type(tower) is not TextTransformer or tower.cls_emb is not None or tower.output_tokens:
            return None
        pooling, mask = tower.pool_type, tower.attn_mask
    return tower if mask is not None and pooling in ("argmax", "eos") else None


def token_tower(clip: Any) -> Any:
    """The text tower of a model that shows what it makes of every token, see ``causal_tower``.

    Raises:
        ClipxError: it does not.
    """
    tower = causal_tower(clip.model)
    if tower is None:
        raise ClipxError(
            f"{clip.name} has a text tower that does not show its tokens",
            hint="open_clip's own causal transformer, read out at its end token, does: ViT-B-32",
        )
    return tower


def shorten(model: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens ``[..., L]`` without the columns that no text of the batch reaches; as they are elsewhere.

    The features are those of the whole length, since what follows the end of a text has no way into them.

    Args:
        model: an open_clip model.
        tokens: int64 ``[..., L]``; best on the CPU, since the longest text must be known.
    """
    tower = causal_tower(model)
    if tower is None or tokens.numel() == 0:
        return tokens
    ends = text_ends(tower, tokens)
    length = -(-(int(ends.max()) + 1) // _STEP) * _STEP
    return tokens[..., :length]


def encode_short(model: nn.Module, tokens: Tensor) -> Tensor:
    """What ``model.encode_text`` gives, before normalisation, of tokens ``[B, L]`` cut by ``shorten``."""
    tower = causal_tower(model)
    full = tower.positional_embedding.shape[0] if tower is not None else tokens.shape[1]
    if tower is None or tokens.shape[1] >= full:
        return model.encode_text(tokens)  # type: ignore[operator]
    return encode_embeddings(tower, tower.token_embedding(tokens), tokens)


def encode_embeddings(tower: Any, embeddings: Tensor, tokens: Tensor) -> Tensor:
    """What ``encode_text`` gives, before normalisation, for embeddings in the place of the tokens' own.

    Args:
        tower: as ``causal_tower`` gives it.
        embeddings: ``[B, L, W]``, positions not added yet; L at most the context length.
        tokens: int64 ``[B, L]``, which say where a text ends, and nothing else.

    Returns:
        ``[B, D]``; bit for bit that of ``encode_text`` if L is the context length.
    """
    return read_out(tower, encode_hidden(tower, embeddings), tokens)


def encode_hidden(tower: Any, embeddings: Tensor) -> Tensor:
    """The last layer of a causal tower at every position ``[B, L, W]``, before its final norm.

    ``read_out`` makes the embedding of the text of it, ``tower.ln_final`` what a head on tokens reads.

    Args:
        tower: as ``causal_tower`` gives it.
        embeddings: ``[B, L, W]``, as ``encode_embeddings`` takes them.
    """
    length, dtype = embeddings.shape[1], tower.transformer.get_cast_dtype()
    hidden = embeddings.to(dtype) + tower.positional_embedding[:length].to(dtype)
    return tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])


def read_out(tower: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    """What a causal tower makes of its last layer ``[B, L, W]`` where the texts end: ``[B, D]``."""
    return projected(tower, pooled_end(tower, hidden, tokens))


def pooled_end(tower: Any, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The last layer ``[B, L, W]`` of a causal tower, normalised, where the texts end: ``[B, W]``."""
    pooling, end = _pooling(tower)
    # The model's own class normalises all positions first, a TextTransformer too; both then read one.
    return text_global_pool(tower.ln_final(hidden), tokens, pooling, eos_token_id=end)


def projected(tower: Any, pooled: Tensor) -> Tensor:
    """What the projection of a causal tower makes of rows ``[B, W]``: ``[B, D]``; themselves without one."""
    projection = tower.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def _pooling(tower: Any) -> tuple[str, int | None]:
    if isinstance(tower, TextTransformer):
        return tower.pool_type, tower.eos_id
    return tower.text_pool_type, getattr(tower, "text_eos_id", None)


def text_ends(tower: Any, tokens: Tensor) -> Tensor:
    """Where each text is read: its highest id, or its first end-of-text id."""
    pooling, end = _pooling(tower)
    if pooling == "argmax":
        return tokens.argmax(-1)
    assert end is not None
    return tokens.eq(end).int().argmax(-1)


def word_places(tower: Any, tokens: Tensor, special: Sequence[int]) -> Tensor:
    """Where the tokens ``[B, L]`` of texts are words: bool ``[B, L]``, false from the end of each on.

    Args:
        tower: as ``causal_tower`` gives it.
        tokens: int64 ``[B, L]``.
        special: ids that are no words, see ``clipx.models.tokenizer.special_ids``.
    """
    before_end = torch.arange(tokens.shape[1], device=tokens.device) < text_ends(tower, tokens)[:, None]
    return before_end & ~torch.isin(tokens, torch.as_tensor(list(special), device=tokens.device))
