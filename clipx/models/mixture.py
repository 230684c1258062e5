"""An image as several tokens, of which each text mixes the vector that it is compared with."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from clipx.errors import ClipxError
from clipx.models.geometry import unit_rows
from clipx.models.text import causal_tower, encode_hidden, pooled_end, projected

KIND = "mixture"
KEEP = ("tokens", "all")

_NUMBERS_AT_ONCE = 2**24
"""Numbers of mixed vectors held at a time: 64 MiB."""


def mixed(keys: Tensor, values: Tensor, queries: Tensor, tau: float, output: Tensor | None = None) -> Tensor:
    """The vector of every image for every text: cross-attention of the text over the image's tokens.

    Args:
        keys: ``[M, K, h, d]`` of M images, K tokens and h heads of width d.
        values: ``[M, K, h, d]``.
        queries: ``[N, h, d]`` of N texts.
        tau: the temperature of the attention, > 0; there is no 1 / sqrt(d).
        output: W_o ``[h * d, h * d]``, applied to the joined heads; None for none.

    Returns:
        ``[M, N, h * d]``, not normalised.

    Source: Lavoie et al. 2024, section 3.
    """
    joined = torch.einsum("mnhk,mkhd->mnhd", attention(keys, queries, tau), values).flatten(2)
    return joined if output is None else joined @ output


def attention(keys: Tensor, queries: Tensor, tau: float) -> Tensor:
    """How much of every token a text takes: ``[M, N, h, K]``, sums to 1 over K; arguments as ``mixed``."""
    return (torch.einsum("mkhd,nhd->mnhk", keys, queries) / tau).softmax(-1)


class Mixture(nn.Module):
    """Compares a text with the mixture of an image's tokens that the text chooses.

    The image tower reads K - 1 further learnt tokens beside its class token; after its last norm each of the
    K has a key and a value by matrices of its own. An image row is its keys and values, ``[2 K D]``; a text
    row is its unit vector and its query, ``[2 D]``. The projection of the image tower is dropped.

    For what compares images with images, an image is the mean over its tokens of the value times W_o.

    Args:
        image_width: of the image tower.
        text_width: of the text tower.
        width: D of the embeddings.
        grid: patches of the image tower.
        tokens: K, mixture tokens.
        heads: h, of the attention, a divisor of D.
        tau: temperature of the attention, > 0: small is sharp.
        keep: ``tokens``; or ``all``: patches have keys and values too, by matrices of their own.
        use_norm: layer norms on queries, keys and values.

    Raises:
        ClipxError: a setting out of its range.

    Source: Lavoie et al. 2024, "Modeling Caption Diversity in Contrastive Vision-Language Pretraining".
    """

    one_vector = False
    kind = KIND

    def __init__(
        self,
        image_width: int,
        text_width: int,
        width: int,
        grid: int,
        *,
        tokens: int = 64,
        heads: int = 8,
        tau: float = 5.0,
        keep: str = "tokens",
        use_norm: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ClipxError(
                f"comparison.heads={heads} must divide the {width} dimensions of the embeddings",
                hint=f"one of {', '.join(str(n) for n in range(1, width + 1) if width % n == 0)}",
            )
        if tokens < 1:
            raise ClipxError(f"comparison.tokens={tokens}: an image has one mixture token or more")
        if not 0 < tau < math.inf:
            raise ClipxError(
                f"comparison.tau={tau} must be above 0", hint="5 of B/32, 1 where heads are small"
            )
        if keep not in KEEP:
            raise ClipxError(f"there is no comparison.keep={keep}", hint="tokens, or all")
        self.tokens, self.heads, self.tau, self.width = tokens, heads, tau, width
        self.kept = tokens + (grid if keep == "all" else 0)
        self.spec: dict[str, Any] = {
            "kind": KIND,
            "tokens": tokens,
            "heads": heads,
            "tau": tau,
            "keep": keep,
            "use_norm": use_norm,
        }
        std = image_width**-0.5
        self.extra_tokens = nn.Parameter(std * torch.randn(tokens - 1, image_width))
        self.extra_positions = nn.Parameter(std * torch.randn(tokens - 1, image_width))
        self.to_keys = nn.Parameter(std * torch.randn(self.kept, image_width, width))
        self.to_values = nn.Parameter(std * torch.randn(self.kept, image_width, width))
        self.to_query = nn.Parameter(text_width**-0.5 * torch.randn(text_width, width))
        self.output = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width) for name in ("query", "key", "value")} if use_norm else {}
        )

    @classmethod
    def of(cls, model: nn.Module, width: int, **settings: Any) -> Self:
        """The mixture for an open_clip model, whose image tower loses its projection.

        Raises:
            ClipxError: the towers are not a ViT with a class token and a causal text transformer.
        """
        from open_clip.transformer import VisionTransformer

        visual: Any = model.visual
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            raise ClipxError(
                f"mixture tokens go into a ViT with a class token, not into a {type(visual).__name__}",
                hint="model=tiny-vit, or an architecture like ViT-B-16",
            )
        text = causal_tower(model)
        if text is None:
            raise ClipxError(
                "mixture tokens are asked by the end token of a causal text transformer, which this model "
                "does not have",
                hint="model=tiny-vit, or an architecture like ViT-B-16",
            )
        text_width = text.token_embedding.weight.shape[1]
        grid = visual.positional_embedding.shape[0] - 1
        made = cls(visual.positional_embedding.shape[1], text_width, width, grid, **settings)
        visual.proj = None
        return made

    def image_features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Keys and values ``[B, 2 K D]`` of normalised images ``[B, 3, H, W]``."""
        visual: Any = model.visual
        own = visual._embeds(images)
        extra = visual.ln_pre((self.extra_tokens + self.extra_positions).to(own.dtype))
        whole = torch.cat([own[:, :1], extra.expand(len(own), -1, -1), own[:, 1:]], dim=1)
        hidden = visual.ln_post(visual.transformer(whole)[:, : self.kept])
        keys, values = (
            self._normed(name, torch.einsum("bkw,kwd->bkd", hidden, matrices.to(hidden.dtype)))
            for name, matrices in (("key", self.to_keys), ("value", self.to_values))
        )
        return torch.cat([keys.flatten(1), values.flatten(1)], dim=1)

    def text_features(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Vectors, not normalised, and queries ``[B, 2 D]`` of token ids ``[B, L]``."""
        tower = causal_tower(model)
        assert tower is not None
        end = pooled_end(tower, encode_hidden(tower, tower.token_embedding(tokens)), tokens)
        query = self._normed("query", end @ self.to_query.to(end.dtype))
        return torch.cat([projected(tower, end), query], dim=1)

    def _normed(self, name: str, rows: Tensor) -> Tensor:
        return self.norms[name](rows) if name in self.norms else rows

    def image_rows(self, features: Tensor) -> Tensor:
        """Keys and values as they are, in float32 or better: ``[B, 2 K D]``."""
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def text_rows(self, features: Tensor) -> Tensor:
        """Unit vectors, and queries as they are, in float32 or better: ``[B, 2 D]``."""
        vector, query = features.to(torch.promote_types(features.dtype, torch.float32)).split(self.width, -1)
        return torch.cat([unit_rows(vector), query], dim=-1)

    def check(self, image: Tensor, text: Tensor) -> None:
        """Check that rows are those of ``image_rows`` and ``text_rows``.

        Raises:
            ClipxError: they have another width.
        """
        for what, rows, wanted in (
            ("image", image, 2 * self.kept * self.width),
            ("text", text, 2 * self.width),
        ):
            if rows.shape[-1] != wanted:
                raise ClipxError(
                    f"{what} rows of a mixture have {wanted} numbers, not {rows.shape[-1]}",
                    hint="what CLIP.encode_image and CLIP.encode_text give; CLIP.score compares them",
                )

    def image_to_text(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the cosines ``[M, N]`` of every text with its mixture of every image.

        A few images at a time where the mixtures of all would not fit the memory; these are made again on
        the way back.
        """
        self.check(image, text)
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, len(text) * self.width))
        if len(image) <= at_once:
            return scale * self._cosines(image, text)
        parts = [_forgetful(self._cosines, part, text) for part in image.split(at_once)]
        return scale * torch.cat(parts)

    def text_to_image(self, text: Tensor, image: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``image_to_text`` with a row a text: ``[N, M]``."""
        return self.image_to_text(image, text, scale).T

    def pairs(self, image: Tensor, text: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """``scale`` times the cosines ``[B]`` of texts with their mixture of the image of the same row."""
        self.check(image, text)
        keys, values = self._tokens(image)
        vector, query = self._asked(text)
        share = (torch.einsum("bkhd,bhd->bhk", keys, query) / self.tau).softmax(-1)
        found = torch.einsum("bhk,bkhd->bhd", share, values).flatten(1) @ self.output.to(values.dtype)
        return scale * (unit_rows(found) * vector).sum(-1)

    def _cosines(self, image: Tensor, text: Tensor) -> Tensor:
        vector, query = self._asked(text)
        found = mixed(*self._tokens(image), query, self.tau, self.output.to(image.dtype))
        return torch.einsum("mnd,nd->mn", unit_rows(found), vector)

    def _tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[M, K, h, d]``."""
        keys, values = image.unflatten(-1, (2, self.kept, self.heads, -1)).unbind(-4)
        return keys, values

    def _asked(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors ``[N, D]`` and queries ``[N, h, d]``."""
        vector, query = text.split(self.width, -1)
        return vector, query.unflatten(-1, (self.heads, -1))

    def shares(self, image: Tensor, text: Tensor) -> Tensor:
        """``attention`` of rows: how much of every token of an image a text takes, ``[M, N, h, K]``."""
        return attention(self._tokens(image)[0], self._asked(text)[1], self.tau)

    def mean_of_texts(self, rows: Tensor) -> Tensor:
        """The mean ``[C, 2 D]`` of rows ``[C, T, 2 D]``: the vector at length 1 again, the query as it is."""
        vector, query = rows.mean(-2).split(self.width, -1)
        return torch.cat([functional.normalize(vector, dim=-1), query], dim=-1)

    def pooled_images(self, rows: Tensor) -> Tensor:
        """Unit vectors ``[N, D]``: the mean over tokens of the value times W_o."""
        values = self._tokens(rows)[1].flatten(2).mean(1)
        return unit_rows(values @ self.output.to(values))

    def clamp(self) -> None:
        """Nothing has bounds."""


def _forgetful(function: Callable[[Tensor, Tensor], Tensor], image: Tensor, text: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return function(image, text)
    return checkpoint(function, image, text, use_reentrant=False)
