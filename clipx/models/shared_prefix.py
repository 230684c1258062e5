"""Texts that begin alike: a causal text tower reads their common beginning once, not once a text.

What stands first cannot see what follows, so the layers make the same of it whatever the text goes on with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from clipx.models.text import read_out, text_ends


def can_share(tower: Any) -> bool:
    """Whether ``encode_shared`` knows the blocks of a tower: open_clip's plain ones, as they are."""
    return all(
        type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention
        for block in tower.transformer.resblocks
    )


def encode_shared(tower: Any, prefix: Tensor, suffix: Tensor, tokens: Tensor) -> Tensor:
    """What ``encode_embeddings`` gives for texts that begin alike; the beginning is computed once.

    Nor does the last layer compute what nobody reads: all but the end of each text.

    Args:
        tower: as ``causal_tower`` gives it, of which ``can_share`` is true.
        prefix: embeddings ``[G, P, W]``, P >= 1, with which all texts of a group begin.
        suffix: embeddings ``[G, C, S, W]``, with which they go on.
        tokens: int64 ``[C, P + S]``, see ``encode_embeddings``; texts end in the suffix.

    Returns:
        ``[G, C, D]``.
    """
    dtype, shared = tower.transformer.get_cast_dtype(), prefix.shape[1]
    groups, classes, length = len(suffix), suffix.shape[1], shared + suffix.shape[2]
    position = tower.positional_embedding[:length].to(dtype)
    mask = tower.attn_mask[:length, :length].to(dtype)
    head, tail = prefix.to(dtype) + position[:shared], (suffix.to(dtype) + position[shared:]).flatten(0, 1)
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        own = _keys_values(block, head)
        both = _joined(own, _keys_values(block, tail), classes)
        head = _block(block, head, own, mask[:shared, :shared])
        tail = _block(block, tail, both, mask[shared:])
    both = _joined(_keys_values(last, head), _keys_values(last, tail), classes)
    ends = text_ends(tower, tokens)
    rows = tail[torch.arange(len(tail), device=tail.device), (ends - shared).repeat(groups)]
    found = _block(last, rows[:, None], both, mask[ends].repeat(groups, 1)[:, None, None])
    end_tokens = tokens.gather(1, ends[:, None]).repeat(groups, 1)
    return read_out(tower, found, end_tokens).unflatten(0, (groups, classes))


def _block(block: Any, rows: Tensor, keys_values: Sequence[Tensor], mask: Tensor) -> Tensor:
    """A block on rows ``[B, L, W]`` that look at keys and values ``[B, heads, K, W/heads]``.

    ``mask``, ``[L, K]`` or ``[B, 1, L, K]``, is added to their scores.
    """
    attention, width = block.attn, rows.shape[-1]
    weight, bias = attention.in_proj_weight[:width], attention.in_proj_bias[:width]
    queries = functional.linear(block.ln_1(rows), weight, bias)
    queries = queries.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    keys, values = keys_values
    seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    rows = rows + block.ls_1(attention.out_proj(seen.transpose(1, 2).flatten(2)))
    return rows + block.ls_2(block.mlp(block.ln_2(rows)))


def _keys_values(block: Any, rows: Tensor) -> tuple[Tensor, ...]:
    """What rows ``[B, L, W]`` show a block's attention: two of ``[B, heads, L, W/heads]``."""
    attention, width = block.attn, rows.shape[-1]
    weight, bias = attention.in_proj_weight[width:], attention.in_proj_bias[width:]
    both = functional.linear(block.ln_1(rows), weight, bias)
    return both.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _joined(head: Sequence[Tensor], tail: Sequence[Tensor], classes: int) -> list[Tensor]:
    """Keys and values of every text: those of its group's beginning, then its own."""
    return [
        torch.cat([first.repeat_interleave(classes, 0), rest], dim=2)
        for first, rest in zip(head, tail, strict=True)
    ]
