"""One split under a model as it was and as it became: figures side by side, differences row by row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipx.data.fields import UNLABELLED
from clipx.inference.evaluation import Embedded, Evaluation
from clipx.inference.zero_shot import class_logits, zero_shot_classifier
from clipx.models.clip import CLIP
from clipx.tasks.classification import Outcomes, accuracy, join, outcomes
from clipx.tasks.intervals import Estimate, paired_difference

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Head:
    """A trained classifier of images: ``module`` maps rows to logits ``[N, C]``.

    Rows are unit embeddings ``[N, D]``, or with ``pool="patches"`` the means of patches ``[N, W]``.
    """

    module: nn.Module
    classes: Sequence[str]
    pool: str = "embedding"

    def logits(self, embedded: Embedded) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels, some rows at a time, of images embedded with ``patches`` where it reads them."""
        rows = embedded.patches if self.pool == "patches" else embedded.image
        assert rows is not None, "embedded without patches"
        device = next(self.module.parameters()).device
        parts = zip(rows.split(_ROWS_AT_ONCE), embedded.labels.split(_ROWS_AT_ONCE), strict=True)
        with torch.no_grad():
            for part, labels in parts:
                yield self.module(part.to(device)).float().cpu(), labels


@dataclass(frozen=True)
class Measured:
    """Figures of a model on a split; ``seen`` is what became of the labelled images, None where there are
    none.
    """

    estimates: dict[str, Estimate]
    seen: Outcomes | None


class BeforeAfter:
    """A split, and what a model made of it before it was changed.

    Args:
        evaluation: of the split.
        clip, head: as they are before.
    """

    def __init__(self, evaluation: Evaluation, clip: CLIP, head: Head | None = None) -> None:
        self.evaluation = evaluation
        self.before = self.measure(clip, head)

    def measure(self, clip: CLIP, head: Head | None = None) -> Measured:
        """Measure a model as ``measured`` does."""
        return measured(self.evaluation, clip, head)

    def beside(self, after: Measured) -> dict[str, Estimate]:
        """The figures of now; then of each that was measured before too ``before_<name>``; and of top-1 the
        ``difference``, paired over the images.
        """
        found = dict(after.estimates)
        found |= {
            f"before_{name}": each for name, each in self.before.estimates.items() if name in after.estimates
        }
        if after.seen is not None and self.before.seen is not None:
            found["difference"] = paired_difference(after.seen.ranks < 1, self.before.seen.ranks < 1)
        return found


def measured(evaluation: Evaluation, clip: CLIP, head: Head | None = None) -> Measured:
    """Zero-shot accuracy and retrieval of a model on a split.

    With a head for the classes of the split, accuracy (``top1``, ...) is the head's, and that of the prompts
    is called ``zero_shot_top1``, ...
    """
    embedded = _embed(evaluation, clip, head)
    seen = evaluation.outcomes(clip, embedded)
    estimates = evaluation.estimates(clip, embedded, seen, evaluation.texts(clip, embedded))
    if head is None or seen is None or not _knows(head, evaluation):
        return Measured(estimates, seen)
    own = join(outcomes(logits, labels) for logits, labels in head.logits(embedded))
    by_head = accuracy(own)
    prompts = {f"zero_shot_{name}": estimates.pop(name) for name in by_head}
    return Measured({**by_head, **estimates, **prompts}, own)


def class_scores(
    evaluation: Evaluation, clip: CLIP, head: Head | None = None
) -> tuple[Tensor, Tensor] | None:
    """Logits ``[N, C]`` and labels ``[N]`` of a split by the head, or by the prompts where the head does not
    know the classes; None where nothing is labelled.
    """
    embedded = _embed(evaluation, clip, head)
    classes = evaluation.source.classes
    if not classes or len(classes) < 2 or not (embedded.labels != UNLABELLED).any():
        return None
    if head is not None and _knows(head, evaluation):
        parts = [logits for logits, _ in head.logits(embedded)]
    else:
        classifier = zero_shot_classifier(clip, classes, evaluation.templates)
        parts = [logits.cpu() for _, logits in class_logits(clip, embedded.image, classifier)]
    return torch.cat(parts), embedded.labels


def _knows(head: Head, evaluation: Evaluation) -> bool:
    return list(head.classes) == list(evaluation.source.classes)


def _embed(evaluation: Evaluation, clip: CLIP, head: Head | None) -> Embedded:
    asked = head is not None and head.pool == "patches" and _knows(head, evaluation)
    return evaluation.embed(clip, patches=asked)
