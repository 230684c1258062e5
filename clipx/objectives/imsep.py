"""IMSep: images keep apart from images and texts from texts, but for those whose captions mean the same."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError, did_you_mean
from clipx.objectives.infonce import check_candidates
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

SIDES = ("image", "text")


def separation(
    rows: Tensor,
    partners: Tensor,
    logit_scale: Tensor | float,
    *,
    distance: Tensor | float = 1.0,
    all_rows: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """Each row picks its partner against the rows of its own modality, as far as these mean something else.

    Args:
        rows: ``[B, D]`` unit rows of one modality.
        partners: ``[B, D]`` unit rows of the other, row i that of row i; ``rows`` themselves where nothing is
            known of what they mean: the plain loss that only repels.
        logit_scale: the inverse temperature, > 0.
        distance: ``[B, M]`` factors of the cosines with all rows, those with the row itself unused, see
            ``semantic_distance``.
        all_rows: ``[M, D]``, with ``rows`` from ``offset``; None: ``rows``.
        offset: of this process's rows among all.

    Returns:
        a scalar, 0 or more.

    Source: Eslami and de Melo 2025 (AlignCLIP), equations 5 to 7.
    """
    own = torch.arange(len(rows), device=rows.device)
    cosines = distance * (rows @ (rows if all_rows is None else all_rows).T)
    logits = cosines.index_put((own, own + offset), (rows * partners).sum(-1))
    return functional.cross_entropy(logit_scale * logits, own + offset)


def semantic_distance(semantics: Tensor, others: Tensor) -> Tensor:
    """How far captions mean something else: ``1 - cosine`` in [0, 2] of unit rows ``[B, S]``, ``[M, S]``."""
    return 1 - semantics @ others.T


class IMSep(nn.Module):
    """Intra-modality separation over the pairs of all processes; goes beside ``infonce``.

    Captions of one meaning have distance 0: to each other they are logits of 0, not left out.

    Args:
        sides: which modalities keep apart: image, text.
        semantic: whether distances of the captions' meanings, the field ``semantics``, weigh the repulsion;
            else every other row repels alike, as in the code without a sentence encoder.

    Raises:
        ClipxError: no side, or an unknown one.

    Source: Eslami and de Melo 2025, "Mitigate the Gap: Improving Cross-Modal Alignment in CLIP". Distances
        are taken between the pairs of all processes, where the code only has those of its own.
    """

    pooled = True

    def __init__(self, sides: tuple[str, ...] = SIDES, semantic: bool = True) -> None:
        super().__init__()
        for side in sides:
            if side not in SIDES:
                raise ClipxError(f"unknown side {side!r}", hint=did_you_mean(side, SIDES))
        if not sides:
            raise ClipxError("IMSep of no side separates nothing", hint="sides=[image,text]")
        self.sides = tuple(sides)
        self.semantic = semantic
        self.needs = ("image", "text", "semantics") if semantic else ("image", "text")

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``separated_images`` and ``separated_texts`` of an encoded batch.

        Raises:
            ClipxError: processes hold batches of different size, or there are fewer than two pairs.
        """
        rows = {"image": encoded.image(), "text": encoded.text()}
        check_equal_rows(rows["image"])
        distance: Tensor | float = 1.0
        if self.semantic:
            semantics = encoded["semantics"].to(rows["image"].dtype)
            distance = semantic_distance(semantics, gather_rows(semantics, with_grad=False))
        offset = world()[0] * len(rows["image"])
        terms = {}
        for side in self.sides:
            own, all_rows = rows[side], gather_rows(rows[side])
            check_candidates(own, all_rows)
            partners = rows["text" if side == "image" else "image"] if self.semantic else own
            terms[f"separated_{side}s"] = separation(
                own, partners, encoded.logit_scale, distance=distance, all_rows=all_rows, offset=offset
            )
        return terms
