"""CoOp: the words around the class name become vectors, learned through both frozen towers."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import check_choice, check_number, check_queries, shots_per_class
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
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.prompting import (
    POSITIONS,
    PromptContext,
    frozen,
    nearest_words,
    random_vectors,
    word_vectors,
)


class CoOp(PromptLearner):
    """A learned context around the class name, one for all classes or one for each.

    Image features are cached, so only the text tower runs: every class's prompt once a step. Published is
    augmentation anew every epoch; with several views an image, each epoch takes the next. The vectors after
    the last step are kept. The nearest word of each vector of a shared context is told in
    ``nearest_words_``.

    Args:
        n_ctx: vectors, 1 or more.
        words: start from the embeddings of these words, as many vectors as they have tokens; None starts at
            random.
        class_specific: each class has vectors of its own; they serve no other classes.
        position: of the class name: ``end``, ``middle``, ``front``.
        epochs: 0 or more; the first warms up at 1e-5. None for those published, see ``published_epochs``.
        lr: SGD's, on a cosine an epoch, see ``rate``; above 0.
        weight_decay: 0 or more.
        batch_size: images a step.
        chunk: prompts that the text tower holds at a time; less takes less memory.
        seed: of the vectors at the start and the order of the images.

    Raises:
        ClipxError: a number out of range, an unknown position.

    Source: Zhou et al. 2022, "Learning to Prompt for Vision-Language Models".
    """

    nearest_words_: str

    def __init__(
        self,
        n_ctx: int = 16,
        words: str | None = None,
        class_specific: bool = False,
        position: str = "end",
        epochs: int | None = None,
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
        batch_size: int = 32,
        chunk: int = 256,
        seed: int = 0,
    ) -> None:
        check_number("n_ctx", n_ctx, least=1)
        check_choice("position", position, POSITIONS)
        check_schedule(epochs, lr, weight_decay, batch_size, chunk)
        self.n_ctx, self.words, self.class_specific = n_ctx, words, class_specific
        self.position, self.epochs, self.lr, self.weight_decay = position, epochs, lr, weight_decay
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
        """Learn the context with cross-entropy.

        Args:
            features, labels, text_classifier, logit_scale, groups: see ``protocol.Adapter``; of the
                classifier only the number of classes is used.
            clip: whose features they are; it stays as it is.
            class_names: C of them.
            validation: nothing is chosen on it.
            progress: told ``("step", done, total)``.

        Raises:
            ClipxError: see ``checks.checked`` and ``PromptContext``; a class of class-specific contexts
                without a shot.
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
        if self.class_specific:
            shots_per_class(support, missing="error")
        scale = float(logit_scale)
        start = self._start(clip, support.classes)
        context = PromptContext(clip, class_names, start, position=self.position, chunk=self.chunk)

        def loss(rows: Tensor, truth: Tensor) -> Tensor:
            text = functional.normalize(context()[0], dim=-1).to(rows.dtype)
            return functional.cross_entropy(zero_shot_logits(rows, text, scale), truth)

        with frozen(clip):
            train(
                context.parameters(),
                loss,
                support,
                epochs=epochs_of(self.epochs, published_epochs(images_a_class(support), support.classes)),
                lr=self.lr,
                weight_decay=self.weight_decay,
                batch_size=self.batch_size,
                seed=self.seed,
                progress=progress,
            )
        self.context_ = context.vectors.detach()
        self.class_names_, self.logit_scale_ = [str(name) for name in class_names], scale
        if not self.class_specific:
            self.nearest_words_ = " ".join(nearest_words(clip, self.context_[0, 0]))
        self.attach(clip)
        return self

    def _start(self, clip: CLIP, classes: int) -> Tensor:
        own = classes if self.class_specific else 1
        if self.words is not None:
            return word_vectors(clip, self.words).repeat(1, own, 1, 1)
        generator = named_generator(self.seed, "context")
        return random_vectors(clip, self.n_ctx, generator=generator, classes=own)

    def text_classifier(self) -> Tensor:
        """The learned prompts of the classes as unit rows ``[C, D]``."""
        if self._kept is None:
            with torch.no_grad(), frozen(self._attached()):
                self._kept = functional.normalize(self._prompts(self.context_)()[0], dim=-1)
        return self._kept

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        text = self.text_classifier()
        return zero_shot_logits(check_queries(features, text), text, self.logit_scale_)
