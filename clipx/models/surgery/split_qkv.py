"""Attention whose query, key, value and output maps are layers of their own, so that one can be changed.

Fused weights hold the rows of q, k and v one after the other; torch's attention reads its weights without
calling a layer, so that nothing could be added to one of them. Splitting changes no output, fusing brings
back the very weights, and the names that open_clip saves.
"""

import math
from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError

_FUSED = {
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.beit.Attention",
    "timm.models.eva.EvaAttention",
    "timm.models.fastvit.Attention",
    "timm.models.swin_transformer.WindowAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "timm.models.vision_transformer.Attention",
}
"""Attentions of timm whose ``qkv`` is q, then k, then v; others interleave them by head."""

_LATENT_POOL = "timm.layers.attention_pool.AttentionPoolLatent"


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` made of four layers ``q``, ``k``, ``v`` and ``o`` that are called.

    Args:
        fused: the attention; its output layer is taken over, the others get copies of its weights.

    Raises:
        ClipxError: it adds rows of its own to keys and values, which no CLIP has.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if fused.bias_k is not None or fused.add_zero_attn:
            raise ClipxError("an attention with add_bias_kv or add_zero_attn cannot be split")
        if fused.in_proj_weight is not None:
            weights = fused.in_proj_weight.chunk(3)
        else:
            weights = (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight)
        biases = [None] * 3 if fused.in_proj_bias is None else fused.in_proj_bias.chunk(3)
        self.q, self.k, self.v = map(_linear, weights, biases)
        self.o: nn.Linear = fused.out_proj
        self.heads, self.dropout, self.batch_first = fused.num_heads, fused.dropout, fused.batch_first
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """What the fused attention gives for batched ``[B, L, D]``, or ``[L, B, D]``; never the weights.

        Raises:
            ValueError: the weights are asked for.
        """
        if need_weights:
            raise ValueError("a split attention gives no weights: need_weights=False")
        if not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        q, k, v = (
            map_(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for map_, rows in ((self.q, query), (self.k, key), (self.v, value))
        )
        mask = None if attn_mask is None else _additive(attn_mask, q.dtype)
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, self.heads))
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q.dtype)[:, None, None]
            mask = padding if mask is None else mask + padding
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.o(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def fuse(self) -> nn.MultiheadAttention:
        """The fused attention with the weights as they are now."""
        layers = (self.q, self.k, self.v)
        bias = self.q.bias is not None
        # On meta no random weights are drawn, which are replaced anyway.
        fused = nn.MultiheadAttention(
            self.q.in_features,
            self.heads,
            self.dropout,
            bias=bias,
            kdim=self.k.in_features,
            vdim=self.v.in_features,
            batch_first=self.batch_first,
            device="meta",
        )
        fused.out_proj = self.o  # type: ignore[assignment]
        if fused.in_proj_weight is not None:
            fused.in_proj_weight = _joined([layer.weight for layer in layers])
        else:
            fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight = (layer.weight for layer in layers)
        if bias:
            fused.in_proj_bias = _joined([layer.bias for layer in layers])
        return fused.train(self.training)


class SplitLinear(nn.Module):
    """A layer whose output is that of several, one after the other: the fused ``qkv`` of timm.

    Args:
        fused: the layer.
        names: a letter a part, of equal size: ``qkv`` or ``kv``.
    """

    def __init__(self, fused: nn.Linear, names: str) -> None:
        super().__init__()
        self.names = names
        weights = fused.weight.chunk(len(names))
        biases = [None] * len(names) if fused.bias is None else fused.bias.chunk(len(names))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))

    def forward(self, rows: Tensor) -> Tensor:
        """The parts' outputs along the last dimension."""
        return torch.cat([part(rows) for part in self.children()], dim=-1)

    def fuse(self) -> nn.Linear:
        """The fused layer with the weights as they are now."""
        parts: list[Any] = list(self.children())
        biased = parts[0].bias is not None
        bias = _joined([part.bias for part in parts]) if biased else None
        return _linear(_joined([part.weight for part in parts]), bias)


class SplitPool(AttentionPool2d):
    """open_clip's attention pool of a ResNet; it has four layers already, and here they are called."""

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features ``[B, D]`` of a map ``[B, C, H, W]``."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        # Only the answer of the first token is read.
        q, k, v = (
            map_(rows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for map_, rows in (
                (self.q_proj, tokens[:, :1]),
                (self.k_proj, tokens),
                (self.v_proj, tokens),
            )
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]


def split_qkv(root: nn.Module) -> None:
    """Split every attention below a module, in place, where its maps cannot be reached otherwise.

    Known are ``nn.MultiheadAttention``, the fused ``qkv`` of timm's vision transformers and the attention
    pools of both; whatever has layers of its own for q, k and v is left as it is.
    """
    for module in list(root.modules()):
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention:
                module.add_module(name, SplitAttention(child))
            elif type(child) is AttentionPool2d:
                child.__class__ = SplitPool
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        qkv = getattr(module, "qkv", None)
        if kind in _FUSED and isinstance(qkv, nn.Linear):
            module.qkv = SplitLinear(qkv, "qkv")
            # EVA, BEiT and Swin keep the biases beside, and would read the weight to add them in one go.
            if getattr(module, "qkv_bias_separate", None) is False:
                module.qkv_bias_separate, module.was_added_at_once = True, True  # type: ignore[assignment]
        elif kind == _LATENT_POOL:
            module.kv = SplitLinear(module.kv, "kv")  # type: ignore[arg-type]


def fuse_qkv(root: nn.Module) -> None:
    """Undo ``split_qkv`` in place, with the weights as they are now."""
    for module in list(root.modules()):
        for name, child in module.named_children():
            if isinstance(child, SplitAttention | SplitLinear):
                module.add_module(name, child.fuse())
            elif type(child) is SplitPool:
                child.__class__ = AttentionPool2d
        if getattr(module, "was_added_at_once", False):
            module.qkv_bias_separate = False  # type: ignore[assignment]
            del module.was_added_at_once


def attention_maps(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where the layers q, k, v and o of a split attention are, as (owner, attribute).

    Returns:
        those that are there; nothing of a module that is no attention.
    """
    if isinstance(module, SplitAttention):
        return {name: (module, name) for name in "qkvo"}
    found: dict[str, tuple[nn.Module, str]] = {}
    for fused in ("qkv", "kv"):
        part = getattr(module, fused, None)
        if isinstance(part, SplitLinear):
            found |= {name: (part, name) for name in part.names}
    if found and "q" not in found and isinstance(getattr(module, "q", None), nn.Linear):
        found["q"] = (module, "q")
    # A layer of BERT keeps its attention and the output map of it side by side.
    inner, beside = getattr(module, "self", module), getattr(module, "output", None)
    for names in (("q_proj", "k_proj", "v_proj"), ("query", "key", "value")):
        if not found and all(isinstance(getattr(inner, name, None), nn.Linear) for name in names):
            found = {short: (inner, name) for short, name in zip("qkv", names, strict=True)}
    if found:
        outputs = [(module, name) for name in ("out_proj", "o_proj", "proj", "c_proj")]
        outputs += [] if beside is None else [(beside, "dense")]
        place = next((each for each in outputs if isinstance(getattr(*each, None), nn.Linear)), None)
        found |= {} if place is None else {"o": place}
    return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer of copies of a weight and a bias, which train as these do."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer


def _joined(parts: list[Tensor]) -> nn.Parameter:
    return nn.Parameter(
        torch.cat([part.detach() for part in parts]), requires_grad=any(part.requires_grad for part in parts)
    )


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to logits; in a boolean one, as ``nn.MultiheadAttention`` has it, true is shut."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
