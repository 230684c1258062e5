"""Classification: how often the right class is first, among the first five, and for whom it is not.

Logits are reduced to one rank and one prediction a row as they come, so a thousand classes and a million
rows never stand in memory together::

    seen = join(outcomes(logits, labels) for logits, labels in chunks)
    estimates = accuracy(seen)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError
from clipx.tasks.intervals import Estimate, mean_of_proportions, proportion


@dataclass(frozen=True)
class Outcomes:
    """What became of every labelled row: its class, the class that scored highest, the rank of its own.

    ``labels``, ``predictions`` and ``ranks`` are int64 ``[N]``; rank 0 is the highest score.
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    ranks: NDArray[np.int64]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)


def outcomes(logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> Outcomes:
    """Reduce logits to outcomes; rows labelled -1 are passed over.

    Equal scores go to the class of the lower index, so that top-1 is what ``argmax`` says and what the
    diagonal of the confusion matrix counts.

    Args:
        logits: ``[N, C]``, any float dtype; -inf rules a class out.
        labels: integers ``[N]``, in [0, C) or -1.

    Raises:
        ClipxError: if shapes do not match, a label lies outside the classes, or a logit is NaN.
    """
    scores = torch.as_tensor(logits)
    truth = torch.as_tensor(labels).to(scores.device)
    if scores.ndim != 2 or truth.ndim != 1 or len(scores) != len(truth):
        raise ClipxError(f"logits {tuple(scores.shape)} and labels {tuple(truth.shape)} do not match")
    if truth.is_floating_point() or truth.is_complex():
        raise ClipxError(f"labels must be integers, not {truth.dtype}")
    classes = scores.shape[1]
    truth = truth.long()
    _check_range(truth, classes)
    kept = truth != UNLABELLED
    scores, truth = scores[kept], truth[kept]
    if scores.isnan().any():
        raise ClipxError(
            "logits hold NaN", hint="are the model's weights finite? precision=fp32 rules out overflow"
        )
    own = scores.gather(1, truth[:, None])
    earlier = torch.arange(classes, device=scores.device)[None] < truth[:, None]
    ranks = (scores > own).sum(1) + ((scores == own) & earlier).sum(1)
    predictions = scores.argmax(1) if classes else truth
    return Outcomes(truth.cpu().numpy(), predictions.cpu().numpy(), ranks.cpu().numpy(), classes)


def _check_range(labels: Tensor, classes: int) -> None:
    outside = labels[(labels != UNLABELLED) & ((labels < 0) | (labels >= classes))]
    if len(outside):
        raise ClipxError(
            f"label {int(outside[0])} is outside the {classes} classes ({len(outside)} such rows)",
            hint=f"labels count from 0 to {classes - 1}, -1 means unlabelled; are these its class names?",
        )


def join(parts: Iterable[Outcomes]) -> Outcomes:
    """Put the outcomes of several chunks together.

    Raises:
        ClipxError: if there are none, or they count different classes.
    """
    parts = list(parts)
    if len({part.classes for part in parts}) != 1:
        raise ClipxError("there are no outcomes" if not parts else "these outcomes count different classes")
    labels, predictions, ranks = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "predictions", "ranks")
    )
    return Outcomes(labels, predictions, ranks, parts[0].classes)


def accuracy(seen: Outcomes) -> dict[str, Estimate]:
    """Top-1, top-5, mean-per-class and worst-class accuracy, each in [0, 1] with its 95% interval.

    Classes without an example do not count in the last two. Where there are fewer than five classes, top-5 is
    top-all. ``worst_class`` is the lowest of many figures: its interval is that of the class taken by itself.

    Raises:
        ClipxError: if there is no labelled row.
    """
    if not len(seen):
        raise ClipxError("no row has a label: there is no accuracy to measure")
    support, correct = _per_class_counts(seen)
    present = support > 0
    support, correct = support[present], correct[present]
    worst = int(np.argmin(correct / support))
    return {
        "top1": proportion(int((seen.ranks < 1).sum()), len(seen)),
        "top5": proportion(int((seen.ranks < min(5, seen.classes)).sum()), len(seen)),
        "mean_per_class": mean_of_proportions(correct, support),
        "worst_class": proportion(int(correct[worst]), int(support[worst])),
    }


def _per_class_counts(seen: Outcomes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    support = np.bincount(seen.labels, minlength=seen.classes)
    correct = np.bincount(seen.labels[seen.ranks < 1], minlength=seen.classes)
    return support, correct


@dataclass(frozen=True)
class ClassRow:
    """One class of the per-class table; recall and precision in [0, 1], None where nothing counts."""

    name: str
    support: int
    recall: float | None
    precision: float | None
    confused_with: str | None


def per_class(seen: Outcomes, names: Sequence[str]) -> list[ClassRow]:
    """For every class: its examples, the share found, how often its name was right, what it was taken for.

    Args:
        seen: outcomes over C classes.
        names: ``[C]``.

    Raises:
        ClipxError: if there is not one name a class.
    """
    if len(names) != seen.classes:
        raise ClipxError(f"{len(names)} class names for {seen.classes} classes")
    matrix = confusion_matrix(seen)
    support, predicted, correct = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    rows = []
    for index, name in enumerate(names):
        mistakes = matrix[index].copy()
        mistakes[index] = 0
        rows.append(
            ClassRow(
                name=name,
                support=int(support[index]),
                recall=float(correct[index] / support[index]) if support[index] else None,
                precision=float(correct[index] / predicted[index]) if predicted[index] else None,
                confused_with=names[int(mistakes.argmax())] if mistakes.any() else None,
            )
        )
    return rows


def confusion_matrix(seen: Outcomes) -> NDArray[np.int64]:
    """Count rows by true class (row) and predicted class (column): int64 ``[C, C]``."""
    cells = seen.labels * seen.classes + seen.predictions
    return np.bincount(cells, minlength=seen.classes**2).reshape(seen.classes, seen.classes)
