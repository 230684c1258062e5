"""Retrieval between images and texts, both ways, where a query may have several right answers.

Which image goes with which text is a list of pairs, so every real case is the same case: five captions an
image, one caption that many images share, a text that no image has (it is only a distractor).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, mean, median, proportion

RECALL_AT = (1, 5, 10)
TIE_TOLERANCE = 1e-6
"""Scores nearer than this, relative to the largest of the query, are equal: less is rounding of a product."""

_SCORES_AT_ONCE = 2**24

Score = Callable[[Tensor, Tensor], Tensor]
"""``(images [M, D], texts [N, D]) -> [M, N]``, higher is more alike: ``CLIP.score``."""


@dataclass(frozen=True)
class Ranking:
    """How every query with an answer fared: rank of its best answer (from 1), average precision; ``[Q]``."""

    best_ranks: NDArray[np.int64]
    average_precisions: NDArray[np.float64]


def distinct_texts(captions: Sequence[Sequence[str]]) -> tuple[list[str], NDArray[np.int64]]:
    """Pair every image with its captions, each distinct text once.

    Two images with the same caption are both right answers to it, and it is a right answer to both.

    Args:
        captions: the texts of every image.

    Returns:
        The distinct texts in order of first appearance, and int64 pairs ``[P, 2]`` of (image, text) indices.
    """
    places: dict[str, int] = {}
    pairs = dict.fromkeys(
        (image, places.setdefault(text, len(places))) for image, own in enumerate(captions) for text in own
    )
    return list(places), np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


def group_pairs(image_groups: ArrayLike, text_groups: ArrayLike) -> NDArray[np.int64]:
    """Pair every image with every text of its group: int64 ``[P, 2]`` of (image, text) indices.

    Args:
        image_groups: a group id an image, ``[M]``.
        text_groups: a group id a text, ``[N]``.
    """
    images, texts = np.asarray(image_groups), np.asarray(text_groups)
    order = np.argsort(texts, kind="stable")
    first, last = (np.searchsorted(texts[order], images, side=side) for side in ("left", "right"))
    counts = last - first
    rows = np.repeat(np.arange(len(images)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return np.stack([rows, order[np.repeat(first, counts) + offsets]], axis=1).astype(np.int64)


def retrieval(
    score: Score,
    images: Tensor,
    texts: Tensor,
    pairs: ArrayLike,
    *,
    at_once: int | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Recall@1/5/10, median rank and mAP, image to text and text to image, with 95% intervals.

    A query hits at k if any right answer is among the first k. Ties count against: everything that scores as
    high as a right answer stands before it, so embeddings that are all alike find nothing. Queries without a
    right answer are passed over, but stand among the candidates of the other way.

    Args:
        score: compares images with texts.
        images: ``[M, D]``.
        texts: ``[N, D]``.
        pairs: (image, text) indices that belong together, ``[P, 2]``.
        at_once: queries a chunk; None fits the memory.
        seed: of the bootstrap interval of mAP.

    Returns:
        ``image_to_text_recall@1``, ..., ``image_to_text_median_rank``, ``image_to_text_map``; and back.

    Raises:
        ClipxError: if nothing is paired, an index is out of range, or a score is not finite.
    """
    chosen = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    if not len(chosen):
        raise ClipxError("no image has a caption: there is nothing to retrieve")
    if chosen.min() < 0 or (chosen.max(0) >= [len(images), len(texts)]).any():
        raise ClipxError(f"a pair points outside the {len(images)} images and {len(texts)} texts")
    chosen = np.unique(chosen, axis=0)
    image_to_text = rank(
        lambda rows: score(images[rows], texts), len(images), len(texts), chosen[:, 0], chosen[:, 1], at_once
    )
    text_to_image = rank(
        lambda rows: score(images, texts[rows]).T,
        len(texts),
        len(images),
        chosen[:, 1],
        chosen[:, 0],
        at_once,
    )
    estimates: dict[str, Estimate] = {}
    for way, ranking in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        for k in RECALL_AT:
            hits = int((ranking.best_ranks <= k).sum())
            estimates[f"{way}_recall@{k}"] = proportion(hits, len(ranking.best_ranks))
        estimates[f"{way}_median_rank"] = median(ranking.best_ranks)
        estimates[f"{way}_map"] = mean(ranking.average_precisions, seed=seed)
    return estimates


def rank(
    score_rows: Callable[[slice], Tensor],
    queries: int,
    candidates: int,
    query_index: NDArray[np.int64],
    answer_index: NDArray[np.int64],
    at_once: int | None = None,
) -> Ranking:
    """Rank the right answers of every query among all candidates, a chunk of queries at a time.

    Args:
        score_rows: scores ``[len(rows), candidates]`` of a slice of the queries.
        queries: how many there are.
        candidates: how many there are.
        query_index: the query of every pair, ``[P]``; no pair twice.
        answer_index: the candidate of every pair, ``[P]``.
        at_once: queries a chunk; None fits the memory.

    Raises:
        ClipxError: if a score is not finite.
    """
    at_once = at_once or max(1, _SCORES_AT_ONCE // max(1, candidates))
    order = np.argsort(query_index, kind="stable")
    query_index, answer_index = query_index[order], answer_index[order]
    starts = np.searchsorted(query_index, np.arange(queries + 1))
    best_ranks, precisions = [], []
    for start in range(0, queries, at_once):
        stop = min(start + at_once, queries)
        if starts[start] == starts[stop]:
            continue
        with torch.no_grad():
            scores = score_rows(slice(start, stop)).detach().float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise ClipxError("similarity scores are not finite", hint="are the model's weights finite?")
        part = slice(starts[start], starts[stop])
        rows, columns = query_index[part] - start, answer_index[part]
        answers = scores[rows, columns]
        bars = answers - TIE_TOLERANCE * np.abs(scores).max(1)[rows]
        rivals = scores.copy()
        rivals[rows, columns] = -np.inf
        rivals.sort(axis=1)  # numpy sorts floats with SIMD, an order of magnitude faster than torch on a CPU
        for query in range(start, stop):
            first, last = starts[query] - starts[start], starts[query + 1] - starts[start]
            if first == last:
                continue
            bar = np.sort(bars[first:last])[::-1]
            before = candidates - np.searchsorted(rivals[query - start], bar, side="left")
            place = np.arange(1, len(bar) + 1)
            best_ranks.append(int(before[0]) + 1)
            precisions.append(float((place / (place + before)).mean()))
    return Ranking(np.array(best_ranks, dtype=np.int64), np.array(precisions))
