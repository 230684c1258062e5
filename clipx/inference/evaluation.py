"""How good a CLIP is on a split, without training anything: zero-shot classification and retrieval."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipx.data.fields import UNLABELLED
from clipx.data.loading import DEFAULT_TEMPLATES, evaluation_loader, is_stream
from clipx.errors import ClipxError, kind_of
from clipx.features.encode import embed_texts, evaluating
from clipx.features.selection import evenly
from clipx.inference.zero_shot import class_logits, zero_shot_classifier
from clipx.models.clip import CLIP, images_to_features
from clipx.models.patches import features_and_patch_mean
from clipx.tasks.classification import Outcomes, accuracy, join, outcomes
from clipx.tasks.intervals import Estimate, flatten
from clipx.tasks.retrieval import distinct_texts, retrieval


def class_outcomes(clip: CLIP, image: Tensor, labels: Tensor, classifier: Tensor) -> Outcomes:
    """What becomes of images ``[N, D]``, labels int64 ``[N]``, under class vectors ``[C, D]``."""
    return join(
        outcomes(logits.cpu(), labels[rows]) for rows, logits in class_logits(clip, image, classifier)
    )


def retrieval_estimates(
    clip: CLIP, image: Tensor, text: Tensor, pairs: Any, *, seed: int = 0
) -> dict[str, Estimate]:
    """Retrieval both ways, compared as the model compares.

    Args:
        clip: the model.
        image: rows ``[M, F]`` of images.
        text: rows ``[N, F]`` of texts.
        pairs: (image, text) indices that belong together, int64 ``[P, 2]``.
        seed: of the bootstrap interval.
    """
    with evaluating(clip):
        return retrieval(clip.score, image.to(clip.device), text.to(clip.device), pairs, seed=seed)


@dataclass(frozen=True)
class Embedded:
    """Images as rows float32 ``[N, F]``, their labels int64 ``[N]`` (-1: none) and captions; the mean of
    their patches float32 ``[N, W]`` where it was asked for.
    """

    image: Tensor
    labels: Tensor
    captions: list[list[str]]
    patches: Tensor | None = None


class Evaluation:
    """Measures models on one split, anew at every call; what a frozen model needs is in ``clipx.features``.

    Args:
        source: map-style or stream source.
        templates: prompts with one ``{}``; None for the source's own, else "a photo of a {}.".
        batch_size: images, and texts, a step.
        workers: loader processes; None chooses.
        limit: look at so many items, evenly spread (of a stream: the first).
        remember: bytes of preprocessed images that may stay in memory for the next call; a split of more is
            read anew.

    Attributes:
        skipped: samples passed over in the last call, by reason.
        sizes: of the last call: samples, classes, texts, and pairs of a sample and a text of its own.
        key_metric: the number to judge by: ``top1`` where there are classes, else ``image_to_text_recall@1``.
    """

    def __init__(
        self,
        source: Any,
        *,
        templates: Sequence[str] | None = None,
        batch_size: int = 256,
        workers: int | None = None,
        limit: int | None = None,
        remember: int = 0,
    ) -> None:
        self.source = source if limit is None or is_stream(source) else evenly(source, limit)
        self.templates = list(templates or source.templates or DEFAULT_TEMPLATES)
        self.batch_size = batch_size
        self.workers = workers
        self.limit = limit
        self.remember = remember
        self._remembered: tuple[str, list[dict[str, Any]]] | None = None
        self.skipped: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.key_metric = "top1" if source.classes and len(source.classes) > 1 else "image_to_text_recall@1"

    def __call__(self, clip: CLIP) -> dict[str, float]:
        """Metrics in [0, 1] (ranks from 1), each with its 95% interval's half width as ``<name>_ci``.

        Raises:
            ClipxError: no sample can be used.
        """
        embedded = self.embed(clip)
        seen, texts = self.outcomes(clip, embedded), self.texts(clip, embedded)
        return flatten(self.estimates(clip, embedded, seen, texts))

    def outcomes(self, clip: CLIP, embedded: "Embedded") -> Outcomes | None:
        """What becomes of labelled images under the class names in prompts; None where none is labelled."""
        classes = self.source.classes
        if not classes or len(classes) < 2 or not (embedded.labels != UNLABELLED).any():
            return None
        classifier = zero_shot_classifier(clip, classes, self.templates)
        return class_outcomes(clip, embedded.image, embedded.labels, classifier)

    def texts(self, clip: CLIP, embedded: "Embedded") -> tuple[Tensor, NDArray[np.int64]] | None:
        """The distinct captions as rows ``[T, D]``, and int64 pairs ``[P, 2]`` of an image and a text of its
        own; None where there are no captions.
        """
        if not any(embedded.captions):
            return None
        texts, pairs = distinct_texts(embedded.captions)
        return embed_texts(clip, texts, batch_size=self.batch_size), pairs

    def estimates(
        self,
        clip: CLIP,
        embedded: "Embedded",
        seen: Outcomes | None,
        texts: tuple[Tensor, NDArray[np.int64]] | None,
    ) -> dict[str, Estimate]:
        """Accuracy of the outcomes, and retrieval where there are captions; ``sizes`` is set.

        Args:
            clip: the model.
            embedded: by it, as ``embed`` gave it.
            seen: of these images; None for no accuracy.
            texts: of these images, as ``texts`` gave them; None for no retrieval.
        """
        estimates: dict[str, Estimate] = {}
        self.sizes = {"samples": len(embedded.image)}
        if seen is not None:
            self.sizes["classes"] = seen.classes
            estimates |= accuracy(seen)
        if texts is not None:
            text, pairs = texts
            self.sizes |= {"texts": len(text), "pairs": len(pairs)}
            estimates |= retrieval_estimates(clip, embedded.image, text, pairs)
        return estimates

    def embed(self, clip: CLIP, *, patches: bool = False) -> "Embedded":
        """The split's usable samples, embedded; ``skipped`` is set.

        Args:
            clip: the model.
            patches: take the mean of the patches too.

        Raises:
            ClipxError: no sample can be used, or the tower does not show its patches.
        """
        features, means, labels, captions = [], [], [], []
        skipped: Counter[str] = Counter()
        with evaluating(clip):
            for batch in self._batches(clip):
                if len(batch["image"]):
                    if patches:
                        rows, mean = features_and_patch_mean(clip, batch["image"])
                        means.append(mean.cpu())
                    else:
                        rows = images_to_features(clip, batch["image"])
                    features.append(rows.cpu())
                    labels.append(batch["label"])
                    captions += batch["captions"]
                skipped.update(kind_of(reason) for _, reason in batch["bad"])
        self.skipped = dict(skipped.most_common())
        if not features:
            what = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.items())
            raise ClipxError(f"no sample of the split can be used ({what or 'it is empty'})")
        mean_patches = torch.cat(means) if patches else None
        return Embedded(torch.cat(features), torch.cat(labels), captions, mean_patches)

    def _batches(self, clip: CLIP) -> Iterator[dict[str, Any]]:
        kind = repr(clip.preprocess_cfg)
        if self._remembered is not None and self._remembered[0] == kind:
            yield from self._remembered[1]
            return
        loader = evaluation_loader(
            self.source, clip.preprocess, batch_size=self.batch_size, workers=self.workers, limit=self.limit
        )
        seen: list[dict[str, Any]] | None = []
        room = self.remember
        for batch in loader:
            yield batch
            room -= batch["image"].nbytes
            if seen is not None and room >= 0:
                seen.append(batch)
            else:
                seen = None
        self._remembered = None if seen is None else (kind, seen)
