"""Prompt learning: learned vectors stand where words would, and pass a frozen text tower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.models.shared_prefix import can_share, encode_shared
from clipx.models.text import causal_tower, encode_embeddings

POSITIONS = ("end", "middle", "front")
STD = 0.02
"""Of vectors that start at random, as CoOp draws them."""

_PLACEHOLDER = "X"


class PromptContext(nn.Module):
    """The prompts ``[start] v1 .. vM name . [end]`` of classes, whose vectors are learned.

    The model's weights are no part of this module. What all classes of a prompt begin with (the start token,
    and the vectors that stand before the name) passes the tower once, not once a class: a causal tower cannot
    tell the difference.

    Args:
        clip: whose text tower and tokenizer are used.
        class_names: C of them.
        vectors: ``[N, 1, M, W]``, N prompts that all classes share, or ``[N, C, M, W]``, each class its own;
            W is the width of the text tower. See ``random_vectors`` and ``word_vectors``.
        position: of the class name: after the vectors (``end``), before them (``front``), or after the first
            ``floor(M/2)`` of them (``middle``). A period follows the name or the last vector.
        chunk: prompts that the tower holds at a time; where there are more, each part is computed again in
            the backward pass instead of being kept.

    Raises:
        ClipxError: a text tower or tokenizer that vectors cannot be put into, vectors of another shape, a
            blank name, or one that is too long for the context length.

    Source: Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", section 3.2; several prompts:
    Agnolucci et al. 2023, "ECO"; shift: Zhou et al. 2022, "Conditional Prompt Learning", section 3.2.
    """

    tokens: Tensor
    embedded: Tensor
    slots: Tensor

    def __init__(
        self,
        clip: CLIP,
        class_names: Sequence[str],
        vectors: Tensor,
        *,
        position: str = "end",
        chunk: int = 256,
    ) -> None:
        super().__init__()
        tower = prompt_tower(clip)
        width = tower.token_embedding.weight.shape[1]
        if vectors.ndim != 4 or vectors.shape[1] not in (1, len(class_names)) or vectors.shape[3] != width:
            raise ClipxError(
                f"context vectors are {list(vectors.shape)}, must be [prompts, 1 or {len(class_names)}, "
                f"vectors, {width}]",
                hint="they belong to one model, class-specific ones to one list of classes too",
            )
        tokens, slots = prompt_tokens(clip, class_names, vectors.shape[2], position)
        tokens, slots = tokens.to(clip.device), slots.to(clip.device)
        self.vectors = nn.Parameter(vectors.detach().to(clip.device, copy=True))
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("embedded", tower.token_embedding(tokens).detach(), persistent=False)
        before_name = {"end": vectors.shape[2], "middle": vectors.shape[2] // 2, "front": 0}[position]
        self._shared = 1 + (before_name if vectors.shape[1] == 1 else 0)
        self._tower = (tower,)  # a tuple keeps the tower's weights out of this module's
        self._chunk = chunk

    def forward(self, shift: Tensor | None = None) -> Tensor:
        """What the text tower makes of every prompt of every class, before normalisation.

        Args:
            shift: ``[B, W]``, added to all vectors, one an image; None for no shift.

        Returns:
            ``[N, C, D]``, or ``[B, N, C, D]`` with a shift.
        """
        if shift is None:
            return self._encode(self.vectors)
        shifted = self.vectors + shift[:, None, None, None, :]
        return self._encode(shifted.flatten(0, 1)).unflatten(0, shifted.shape[:2])

    def _encode(self, vectors: Tensor) -> Tensor:
        """Features ``[G, C, D]`` of vectors ``[G, 1 or C, M, W]``, some prompts at a time."""
        groups, classes = len(vectors), len(self.tokens)
        if groups * classes <= self._chunk:
            return self._part(vectors, slice(None))
        several, few = max(1, self._chunk // classes), min(classes, self._chunk)
        rows = []
        for part in vectors.split(several):
            columns = [slice(first, first + few) for first in range(0, classes, few)]
            rows.append(torch.cat([self._kept_small(part, column) for column in columns], dim=1))
        return torch.cat(rows)

    def _kept_small(self, vectors: Tensor, classes: slice) -> Tensor:
        if not torch.is_grad_enabled():
            return self._part(vectors, classes)
        return checkpoint(self._part, vectors, classes, use_reentrant=False)

    def _part(self, vectors: Tensor, classes: slice) -> Tensor:
        vectors = vectors if vectors.shape[1] == 1 else vectors[:, classes]
        placed = place(vectors, self.embedded[classes], self.slots[classes])
        tower, tokens = self._tower[0], self.tokens[classes]
        if can_share(tower):
            return encode_shared(tower, placed[:, 0, : self._shared], placed[:, :, self._shared :], tokens)
        flat = encode_embeddings(tower, placed.flatten(0, 1), tokens.repeat(len(placed), 1))
        return flat.unflatten(0, placed.shape[:2])


def random_vectors(
    clip: CLIP,
    n_ctx: int,
    *,
    generator: torch.Generator,
    prompts: int = 1,
    classes: int = 1,
    std: float = STD,
) -> Tensor:
    """Vectors ``[prompts, classes, n_ctx, W]`` from a normal distribution, on the model's device.

    Prompts are drawn one after the other: the first of several is the one that would be drawn alone.
    """
    like = prompt_tower(clip).token_embedding.weight
    shape = (classes, n_ctx, like.shape[1])
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(prompts)]
    return std * torch.stack(drawn).to(like)


def word_vectors(clip: CLIP, words: str) -> Tensor:
    """The token embeddings of words, as vectors ``[1, 1, M, W]`` to start from; M is their tokens.

    Raises:
        ClipxError: there is no word.
    """
    tower, tokenizer = prompt_tower(clip), _tokenizer(clip)
    ids = tokenizer.encode(words.replace("_", " "))
    if not ids:
        raise ClipxError(f"words={words!r} holds no word", hint="words='a photo of a'")
    return tower.token_embedding(torch.tensor(ids, device=clip.device)).detach()[None, None]


def nearest_words(clip: CLIP, vectors: Tensor) -> list[str]:
    """For each vector ``[M, W]`` the entry of the vocabulary that is nearest to it, by Euclidean distance.

    Source: Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", table 4. It warns: the nearest
    word need not be what the vector means.
    """
    table = prompt_tower(clip).token_embedding.weight.detach()
    decoder = _tokenizer(clip).decoder
    nearest = torch.cdist(vectors.detach().to(table), table).argmin(1).tolist()
    return [decoder[token].removesuffix("</w>") for token in nearest]


def prompt_tower(clip: CLIP) -> Any:
    """The module that holds the text tower, if vectors can be put among its tokens.

    Raises:
        ClipxError: a tower of another library, a bidirectional one, one with a class token, or a tokenizer
            that is not CLIP's byte-pair encoding.
    """
    tower = causal_tower(clip.model)
    if tower is None:
        raise ClipxError(
            f"{clip.name} has a text tower that learned prompts cannot be put into",
            hint="it must be open_clip's own causal transformer, read out at its end token, as in ViT-B-32",
        )
    _tokenizer(clip)
    return tower


def _tokenizer(clip: CLIP) -> SimpleTokenizer:
    tokenizer = clip.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        raise ClipxError(
            f"{clip.name} has a tokenizer that learned prompts cannot be put into",
            hint="it must be CLIP's byte-pair encoding, as in ViT-B-32",
        )
    return tokenizer


def prompt_tokens(
    clip: CLIP, class_names: Sequence[str], n_ctx: int, position: str = "end"
) -> tuple[Tensor, Tensor]:
    """Tokens of the prompts of classes with placeholders, and where those stand.

    Args:
        clip: whose tokenizer is used.
        class_names: C of them.
        n_ctx: M, placeholders a prompt, 1 or more.
        position: of the name, see ``PromptContext``.

    Returns:
        token ids int64 ``[C, L]``, L the longest prompt, and the places int64 ``[C, M]`` of the placeholders.

    Raises:
        ClipxError: an unknown position, no name, a blank one, or one that is too long.
    """
    if position not in POSITIONS:
        raise ClipxError(f"unknown position {position!r}", hint=f"one of {', '.join(POSITIONS)}")
    if not class_names:
        raise ClipxError("there are no class names")
    tokenizer = _tokenizer(clip)
    limit = prompt_tower(clip).positional_embedding.shape[0]
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    rows, slots = [], []
    for place_, name in enumerate(class_names):
        # As one text: a name may end in what merges with the period.
        ids = tokenizer.encode(" ".join([*[_PLACEHOLDER] * n_ctx, f"{name}."]))
        hole, words, period = ids[:n_ctx], ids[n_ctx:-1], ids[-1:]
        if not words:
            raise ClipxError(f"class {place_} has a blank name")
        row = [tokenizer.sot_token_id, *hole[:before], *words, *hole[before:], *period]
        row.append(tokenizer.eot_token_id)
        if len(row) > limit:
            raise ClipxError(
                f"the prompt of {name!r} takes {len(row)} tokens with {n_ctx} context vectors,"
                f" this model reads {limit}",
                hint="a shorter name, or fewer vectors: adapter.n_ctx=4",
            )
        rows.append(row)
        first, second = range(1, 1 + before), range(1 + before + len(words), 1 + n_ctx + len(words))
        slots.append([*first, *second])
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return tokens, torch.tensor(slots)


def place(vectors: Tensor, embedded: Tensor, slots: Tensor) -> Tensor:
    """Prompts ``[G, C, L, W]`` with vectors in their slots.

    Args:
        vectors: ``[G, 1 or C, M, W]``.
        embedded: what stands elsewhere, ``[C, L, W]``.
        slots: int64 ``[C, M]``, places in [0, L).
    """
    groups, (classes, length, width) = len(vectors), embedded.shape
    where = slots[None, :, :, None].expand(groups, classes, -1, width)
    base = embedded.to(vectors.dtype).expand(groups, classes, length, width)
    return base.scatter(2, where, vectors.expand(groups, classes, -1, -1))


@contextmanager
def frozen(clip: CLIP) -> Iterator[None]:
    """Keep a model in evaluation mode and its weights out of every gradient, and put it back as it was."""
    training, weights = clip.training, [each for each in clip.parameters() if each.requires_grad]
    clip.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        clip.train(training)
