"""Words against patches: a pair is as alike as its words are to the patches that they are assigned."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.models.clip import CLIP, MAX_LOG_SCALE
from clipx.models.geometry import unit_rows
from clipx.models.patches import patch_width
from clipx.models.text import projected, token_tower, word_places
from clipx.models.tokenizer import special_ids
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

SOLVERS = ("hungarian", "relaxed", "max")
"""Each word a patch of its own; patches that serve several words; each word its best patch (FILIP)."""


@torch.no_grad()
def assign(scores: Tensor, words: Tensor, capacity: float = 2) -> Tensor:
    """Assign words to patches so that the sum of their scores is largest, exactly.

    As many words as there is room for are assigned.

    Args:
        scores: ``[P, L, R]`` of P pairs, L words and R patches.
        words: bool ``[P, L]``, which of them are words.
        capacity: words that a patch may serve, 1 or more; 1 is the Hungarian assignment, ``math.inf`` the
            best patch of each word.

    Returns:
        int64 ``[P, L]``, the patch of each word, -1 where it has none or is no word.

    Source: Kuhn 1955, as scipy solves it, with ``capacity`` copies of each patch; only of pairs in which the
        best patches of words are not an answer yet.
    """
    chosen = scores.argmax(-1).masked_fill(~words, -1)
    served = functional.one_hot(chosen + 1, scores.shape[-1] + 1)[..., 1:].sum(-2).amax(-1)
    crowded = (served > capacity).nonzero()[:, 0].tolist()
    if crowded:
        from scipy.optimize import linear_sum_assignment

        copies = int(capacity)
        # A loss that is not finite is the training loop's to report.
        costs, kept = scores[crowded].double().nan_to_num().cpu().numpy(), words[crowded].cpu().numpy()
        answers = torch.full((len(crowded), words.shape[1]), -1)
        for answer, cost, valid in zip(answers, costs, kept, strict=True):
            rows, columns = linear_sum_assignment(cost[valid].repeat(copies, axis=1), maximize=True)
            places = torch.from_numpy(valid.nonzero()[0][rows])
            answer[places] = torch.from_numpy(columns // copies)
        chosen[crowded] = answers.to(chosen.device)
    return chosen


def assigned_mean(scores: Tensor, words: Tensor, capacity: float = 2) -> Tensor:
    """Mean score ``[P]`` of the words that have a patch, 0 where there is none; arguments as ``assign``.

    The assignment gets no gradient, the scores that it picks do.
    """
    chosen = assign(scores, words, capacity)
    picked = scores.gather(-1, chosen.clamp(min=0)[..., None])[..., 0]
    matched = (chosen >= 0).to(scores.dtype)
    return (picked * matched).sum(-1) / matched.sum(-1).clamp(min=1)


def token_similarities(
    patches: Tensor, words: Tensor, valid: Tensor, capacity: float = 2, pairs: Tensor | None = None
) -> Tensor:
    """How alike images and texts are, token by token.

    Args:
        patches: ``[M, R, D]`` unit rows.
        words: ``[N, L, D]`` unit rows.
        valid: bool ``[N, L]``, which of them are words.
        capacity: see ``assign``.
        pairs: bool ``[M, N]``, those that are wanted; None for all.

    Returns:
        ``[M, N]``, in [-1, 1]; 0 of pairs that are not wanted and of texts without a word.
    """
    if pairs is None:
        scores = torch.einsum("nld,mrd->mnlr", words, patches)
        flat = valid.expand(len(patches), *valid.shape).flatten(0, 1)
        return assigned_mean(scores.flatten(0, 1), flat, capacity).unflatten(0, scores.shape[:2])
    image, text = pairs.nonzero(as_tuple=True)
    scores = words[text] @ patches[image].transpose(1, 2)
    found = scores.new_zeros(pairs.shape)
    return found.index_put((image, text), assigned_mean(scores, valid[text], capacity))


def hardest(cosines: Tensor, count: int, offset: int = 0) -> Tensor:
    """Of each row its match and the other candidates nearest to it: bool ``[B, M]``.

    Args:
        cosines: ``[B, M]`` of rows and candidates, of which row i matches ``offset + i``.
        count: of other candidates, 1 or more; all where there are fewer.
        offset: of the rows among the candidates.
    """
    ranked = cosines.detach().clone()
    ranked.diagonal(offset).fill_(torch.inf)
    near = ranked.topk(min(count + 1, cosines.shape[1]), dim=1).indices
    return torch.zeros_like(cosines, dtype=torch.bool).scatter(1, near, True)


def one_way(logits: Tensor, candidates: Tensor, asked: Tensor, offset: int = 0) -> Tensor:
    """Mean cross-entropy of rows that pick their match among candidates; rows that are not asked count 0.

    Args:
        logits: ``[B, M]``, row i matches ``offset + i``.
        candidates: bool ``[B, M]``, those that a row picks from; its match among them where it is asked.
        asked: bool ``[B]``.
        offset: of the rows among the candidates.
    """
    # What is not asked may have no candidate, and the gradient of a softmax over nothing is none.
    logits = torch.where(asked[:, None], logits.masked_fill(~candidates, -torch.inf), 0.0)
    wanted = torch.arange(offset, offset + len(logits), device=logits.device)
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    return (losses * asked).sum() / len(logits)


class TokenMatch(nn.Module):
    """Pairs picked out of the batches of all processes by their words and patches, on a scale of its own.

    Patches are normalised and mapped into the space of the embeddings by a linear map that is learnt here;
    words are what the text tower would make of each token at the end of a text. In use neither is needed. It
    works on tokens, so a gradient cache has no use for it.

    Args:
        clip: with towers that show their tokens.
        solver: ``hungarian``, ``relaxed``, or ``max``, which is FILIP.
        capacity: words that a patch may serve, of ``relaxed``, 1 or more.
        hard_negatives: other candidates of each row, those whose pooled embeddings are nearest; None for all.
            The assignments are solved on the CPU, so batches beyond some hundred need this.

    Raises:
        ClipxError: other towers, a tokenizer that does not name its special tokens, an unknown solver, or a
            number out of range.

    Source: LightCLIP (2023), token-level alignment; ``max``: Yao et al. 2021 (FILIP). That patches may serve
    two words, and the hardest negatives, are readings; the assignment is exact, not approximated.
    """

    needs = ("image", "text")

    def __init__(
        self, clip: CLIP, solver: str = "relaxed", capacity: int = 2, hard_negatives: int | None = None
    ) -> None:
        super().__init__()
        if solver not in SOLVERS:
            raise ClipxError(f"there is no solver {solver!r}", hint=did_you_mean(solver, SOLVERS))
        if capacity < 1:
            raise ClipxError(f"capacity is {capacity}, must be 1 or more")
        if hard_negatives is not None and hard_negatives < 1:
            raise ClipxError(f"hard_negatives is {hard_negatives}, must be 1 or more, or null for all")
        token_tower(clip)
        self.special = special_ids(clip.tokenizer)
        self.capacity = {"hungarian": 1, "relaxed": capacity, "max": math.inf}[solver]
        self.hard_negatives = hard_negatives
        self.patches = nn.Linear(patch_width(clip), int(clip.model_cfg["embed_dim"]))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def prepare(self, encoded: Encoded) -> None:
        """Have the towers show their tokens before any objective asks for embeddings."""
        encoded.image_tokens()
        encoded.text_tokens()

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"token_match": loss}`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size, or there is one pair alone.
        """
        tower, tokens = token_tower(encoded.clip), encoded["text"]
        seen = encoded.image_tokens()
        seen = seen.to(torch.promote_types(seen.dtype, torch.float32))
        patches = unit_rows(self.patches(functional.layer_norm(seen, seen.shape[-1:])))
        words = unit_rows(projected(tower, tower.ln_final(encoded.text_tokens()).to(patches.dtype)))
        valid = word_places(tower, tokens, self.special)
        check_equal_rows(patches)
        words, valid = _as_long_everywhere(words, valid)
        all_patches, all_words = gather_rows(patches), gather_rows(words)
        all_valid = gather_rows(valid.to(torch.uint8), with_grad=False).bool()
        if len(all_patches) < 2:
            raise ClipxError("a contrastive batch needs at least 2 pairs", hint="raise training.batch_size")
        offset = world()[0] * len(patches)
        of_images = of_texts = None
        if self.hard_negatives is not None:
            image, text = encoded.image().detach(), encoded.text().detach()
            of_images = hardest(image @ gather_rows(text).T, self.hard_negatives, offset)
            of_texts = hardest(text @ gather_rows(image).T, self.hard_negatives, offset)
        to_text = token_similarities(patches, all_words, all_valid, self.capacity, of_images)
        if of_texts is None and world()[1] == 1:
            to_image = to_text.T
        else:
            wanted = None if of_texts is None else of_texts.T
            to_image = token_similarities(all_patches, words, valid, self.capacity, wanted).T
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
        told, all_told = valid.any(-1), all_valid.any(-1)
        among_texts = all_told.expand_as(to_text) if of_images is None else of_images & all_told
        among_images = torch.ones_like(to_image, dtype=torch.bool) if of_texts is None else of_texts
        loss = one_way(scale * to_text, among_texts, told, offset)
        loss = loss + one_way(scale * to_image, among_images, told, offset)
        return {"token_match": loss / 2}


def _as_long_everywhere(words: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Words ``[B, L, D]`` and which of them are, padded to the longest batch of all processes."""
    if world()[1] == 1:
        return words, valid
    lengths = gather_rows(torch.tensor([words.shape[1]], device=words.device), with_grad=False)
    missing = int(lengths.max()) - words.shape[1]
    return functional.pad(words, (0, 0, 0, missing)), functional.pad(valid, (0, missing))
