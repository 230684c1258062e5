"""ECO: several short learned contexts, whose text features are averaged into one classifier."""

from collections.abc import Sequence
from itertools import chain
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import check_choice, check_number, check_queries
from clipx.adapters.prompt_learning import (
    PromptLearner,
    check_schedule,
    checked_shots,
    epochs_of,
    images_a_class,
    named_generator,
    published_epochs,
    train,
)
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.errors import ClipxError
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.prompting import PromptContext, frozen, random_vectors

AVERAGES = ("unit", "raw")


def ensemble(features: Tensor, average: str = "unit") -> Tensor:
    """One unit row a class ``[C, D]`` from N prompts' features ``[N, C, D]`` of any length.

    Args:
        features: as the text tower gives them.
        average: ``unit`` normalises every feature, then averages; ``raw`` averages them as they are.

    Source: Agnolucci et al. 2023, section 3. It does not say which; ``unit`` is how prompts of CLIP are.
    """
    rows = functional.normalize(features, dim=-1) if average == "unit" else features
    return functional.normalize(rows.mean(0), dim=-1)


class ECO(PromptLearner):
    """CoOp with several contexts at once, averaged into one classifier that costs at test what CoOp's does.

    The contexts start at random from different draws; nothing else keeps them apart. With one prompt it is
    CoOp, step by step.

    Args:
        prompts: contexts, 1 or more.
        n_ctx: vectors of each, 1 or more, or a list: of every one.
        average: of the text features, see ``ensemble``.
        epochs, lr, weight_decay, batch_size, chunk, seed: as ``CoOp``.

    Raises:
        ClipxError: a number out of range, a list of another length than ``prompts``.

    Source: Agnolucci et al. 2023, "ECO: Ensembling Context Optimization for Vision-Language Models".
    """

    lengths_: list[int]

    def __init__(
        self,
        prompts: int = 4,
        n_ctx: int | Sequence[int] = 4,
        average: str = "unit",
        epochs: int | None = None,
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
        batch_size: int = 32,
        chunk: int = 256,
        seed: int = 0,
    ) -> None:
        check_number("prompts", prompts, least=1)
        for length in [n_ctx] if isinstance(n_ctx, int) else n_ctx:
            check_number("n_ctx", length, least=1)
        if not isinstance(n_ctx, int) and len(n_ctx) != prompts:
            raise ClipxError(f"n_ctx lists {len(n_ctx)} lengths for {prompts} prompts")
        check_choice("average", average, AVERAGES)
        check_schedule(epochs, lr, weight_decay, batch_size, chunk)
        self.prompts, self.n_ctx, self.average = prompts, n_ctx, average
        self.epochs, self.lr, self.weight_decay = epochs, lr, weight_decay
        self.batch_size, self.chunk, self.seed = batch_size, chunk, seed

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        clip: CLIP,
        class_names: Sequence[str],
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn the contexts together, with cross-entropy of their averaged classifier.

        Args:
            features, labels, text_classifier, logit_scale, groups: see ``protocol.Adapter``; of the
                classifier only the number of classes is used.
            clip: whose features they are; it stays as it is.
            class_names: C of them.
            validation: nothing is chosen on it.
            progress: told ``("step", done, total)``.

        Raises:
            ClipxError: see ``checks.checked`` and ``PromptContext``.
        """
        support = checked_shots(
            features,
            labels,
            text_classifier,
            logit_scale=logit_scale,
            clip=clip,
            class_names=class_names,
            validation=validation,
            groups=groups,
        )
        scale = float(logit_scale)
        generator = named_generator(self.seed, "context")
        # In order of length: how the prompts are stored, and no matter to their mean.
        lengths = sorted([self.n_ctx] * self.prompts if isinstance(self.n_ctx, int) else self.n_ctx)
        contexts = [
            PromptContext(clip, class_names, start, chunk=self.chunk)
            for start in (
                random_vectors(clip, length, generator=generator, prompts=lengths.count(length))
                for length in dict.fromkeys(lengths)
            )
        ]

        def loss(rows: Tensor, truth: Tensor) -> Tensor:
            text = self._classifier(contexts).to(rows.dtype)
            return functional.cross_entropy(zero_shot_logits(rows, text, scale), truth)

        with frozen(clip):
            train(
                chain.from_iterable(context.parameters() for context in contexts),
                loss,
                support,
                epochs=epochs_of(self.epochs, published_epochs(images_a_class(support), support.classes)),
                lr=self.lr,
                weight_decay=self.weight_decay,
                batch_size=self.batch_size,
                seed=self.seed,
                progress=progress,
            )
        # Shorter contexts are filled up with zeros, so that one tensor holds all.
        vectors = [context.vectors.detach() for context in contexts]
        self.context_ = torch.cat(
            [functional.pad(each, (0, 0, 0, lengths[-1] - each.shape[2])) for each in vectors]
        )
        self.lengths_ = lengths
        self.class_names_, self.logit_scale_ = [str(name) for name in class_names], scale
        self.attach(clip)
        return self

    def _classifier(self, contexts: Sequence[PromptContext]) -> Tensor:
        return ensemble(torch.cat([context() for context in contexts]), self.average)

    def text_classifier(self) -> Tensor:
        """The averaged prompts of the classes as unit rows ``[C, D]``."""
        if self._kept is None:
            clip = self._attached()
            lengths = torch.tensor(self.lengths_, device=self.context_.device)
            contexts = [
                self._prompts(self.context_[lengths == length, :, :length])
                for length in dict.fromkeys(self.lengths_)
            ]
            with torch.no_grad(), frozen(clip):
                self._kept = self._classifier(contexts)
        return self._kept

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        text = self.text_classifier()
        return zero_shot_logits(check_queries(features, text), text, self.logit_scale_)
