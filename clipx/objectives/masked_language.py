"""Masked language modelling: words of a caption are hidden, and told from the rest of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP, unit_rows
from clipx.models.text import encode_hidden, read_out, token_tower, word_places
from clipx.models.tokenizer import special_ids
from clipx.training.distributed import sum_across, world
from clipx.training.encoded import Encoded

NOT_ASKED = -100
"""Label of a token that is not to be told, as ``cross_entropy`` ignores it."""

MASKED_TEXT = "masked_text"
"""What other objectives call the embeddings of the masked captions."""


class Masked(NamedTuple):
    """Captions of which some words are to be told.

    Attributes:
        tokens: int64 ``[B, L]``, some of them replaced by others.
        hidden: bool ``[B, L]``, where a mask stands in the place of the token.
        labels: int64 ``[B, L]``, the token that was there, ``NOT_ASKED`` where it is not to be told.
    """

    tokens: Tensor
    hidden: Tensor
    labels: Tensor


def bert_mask(
    tokens: Tensor,
    words: Tensor,
    vocabulary: Tensor,
    *,
    share: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    generator: torch.Generator | None = None,
) -> Masked:
    """Draw the tokens that are to be told, and hide most of them.

    Of the drawn ones a part is masked, a part replaced by a random token, and the rest stays as it is. One
    word of each caption is never drawn, so that something is left of short ones.

    Args:
        tokens: int64 ``[B, L]``.
        words: bool ``[B, L]``, tokens that may be drawn; special ones and padding are none.
        vocabulary: int64 ``[V]``, the ids that random tokens are drawn from.
        share: probability that a word is drawn, in [0, 1].
        mask_share: of the drawn ones, the share that is masked, in [0, 1].
        random_share: the share that is replaced; with ``mask_share`` at most 1.
        generator: of the draws, None for torch's own; on the device of the tokens.

    Raises:
        ClipxError: a share outside its range.

    Source: Devlin et al. 2019 (BERT), section 3.1.
    """
    if not 0 <= share <= 1:
        raise ClipxError(f"share is {share}, must lie in [0, 1]")
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
        raise ClipxError(
            f"mask_share={mask_share} and random_share={random_share} are no shares of a whole",
            hint="0 or more, and at most 1 together: 0.8 and 0.1 in BERT",
        )
    draws = torch.rand(2, *tokens.shape, generator=generator, device=tokens.device)
    others = torch.randint(len(vocabulary), tokens.shape, generator=generator, device=tokens.device)
    # Only where every word is drawn, the one that was nearest to being left is.
    last = draws[0].masked_fill(~words, -1.0).argmax(-1, keepdim=True)
    drawn = ((draws[0] < share) & words).scatter(-1, last, False)
    hidden = drawn & (draws[1] < mask_share)
    replaced = drawn & ~hidden & (draws[1] < mask_share + random_share)
    return Masked(
        tokens=torch.where(replaced, vocabulary[others], tokens),
        hidden=hidden,
        labels=torch.where(drawn, tokens, NOT_ASKED),
    )


def told_loss(features: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
    """Mean cross-entropy of what a head tells of the tokens that are asked for; 0 where none is. Collective.

    The head sees these alone, for its logits are as many as the vocabulary. The mean over processes has the
    value and the gradient of one process with all captions.

    Args:
        features: ``[B, L, W]``, one a token.
        labels: int64 ``[B, L]``, ``NOT_ASKED`` where nothing is asked.
        head: ``[N, W] -> [N, V]``.

    Returns:
        a scalar, 0 or more.
    """
    asked = labels != NOT_ASKED
    logits = head(features[asked])
    total = functional.cross_entropy(logits, labels[asked], reduction="sum")
    count = sum_across(asked.sum().to(total.dtype))
    return total * world()[1] / count.clamp(min=1)


class MaskedLanguage(nn.Module):
    """Tells the hidden words of captions from the words before them, as a causal text tower sees them.

    What stands for a hidden word is learnt here and put among the embeddings of the tokens, so that the
    vocabulary of the model stays. The embeddings of the masked captions are there for other objectives as the
    field ``masked_text``, from the same pass. It works on tokens, so a gradient cache has no use for it.

    Args:
        clip: whose text tower is trained.
        field: of the captions.
        share: probability that a word is to be told, in [0, 1].
        mask_share, random_share: see ``bert_mask``.

    Raises:
        ClipxError: a text tower that embeddings cannot be put into, a tokenizer that does not name its
            special tokens, or a share outside its range.

    Source: Devlin et al. 2019 (BERT), task 1; with a CLIP, Li et al. 2022 (DeCLIP), section 3.1.
    """

    gives: tuple[str, ...] = (MASKED_TEXT,)
    needs: tuple[str, ...]
    raw: tuple[str, ...]

    def __init__(
        self,
        clip: CLIP,
        field: str = "text",
        share: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ) -> None:
        super().__init__()
        tower = token_tower(clip)
        self.needs = self.raw = (field,)
        self.field = field
        self.special = special_ids(clip.tokenizer)
        self.shares: dict[str, Any] = {"share": share, "mask_share": mask_share, "random_share": random_share}
        size, width = tower.token_embedding.weight.shape
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.head = nn.Linear(width, size)
        self.vocabulary: Tensor
        ids = torch.arange(size)
        self.register_buffer(
            "vocabulary", ids[~torch.isin(ids, torch.tensor(self.special))], persistent=False
        )
        none = torch.zeros(0, 1, dtype=torch.int64)
        bert_mask(none, none.bool(), self.vocabulary, **self.shares)  # shares that cannot be are met here

    def prepare(self, encoded: Encoded) -> None:
        """Embed the masked captions, before any objective asks for ``masked_text``."""
        self._masked(encoded)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"mlm": loss}`` of an encoded batch."""
        features, labels = self._masked(encoded)
        return {"mlm": told_loss(features, labels, self.head)}

    def _masked(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        return encoded.once(self, lambda: self._embed(encoded))

    def _embed(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """What the head reads ``[B, L, W]``, and the labels ``[B, L]``."""
        tower = token_tower(encoded.clip)
        with encoded.precision():
            embeddings, labels = self.drawn(encoded)
            hidden = encode_hidden(tower, embeddings)
            # The captions as they were say where each ends.
            encoded.put(MASKED_TEXT, unit_rows(read_out(tower, hidden, encoded[self.field])))
            features = tower.ln_final(hidden)
        return features.to(torch.promote_types(features.dtype, torch.float32)), labels

    def drawn(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Embeddings ``[B, L, W]`` of captions with words hidden, and the labels ``[B, L]``.

        Positions are not added yet; each call draws other words.
        """
        tower, tokens = token_tower(encoded.clip), encoded[self.field]
        masked = bert_mask(tokens, word_places(tower, tokens, self.special), self.vocabulary, **self.shares)
        embeddings = tower.token_embedding(masked.tokens)
        hidden = masked.hidden[..., None]
        return torch.where(hidden, self.mask_token.to(embeddings.dtype), embeddings), masked.labels
