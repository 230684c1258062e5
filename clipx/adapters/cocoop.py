"""CoCoOp: CoOp's context, shifted for every image by a small network of the image's feature."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import check_number, check_queries
from clipx.adapters.prompt_learning import (
    PromptLearner,
    check_schedule,
    checked_shots,
    epochs_of,
    named_generator,
    train,
)
from clipx.adapters.training import parameter
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.prompting import PromptContext, frozen, random_vectors, word_vectors

PUBLISHED_EPOCHS = 10


def meta_net(features: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """The shift ``W2 relu(W1 f + b1) + b2``, ``[B, W]``, of unit rows ``[B, D]``.

    Args:
        features: ``[B, D]``.
        down, down_bias: ``[H, D]``, ``[H]``.
        up, up_bias: ``[W, H]``, ``[W]``.

    Source: Zhou et al. 2022, "Conditional Prompt Learning", section 3.2.
    """
    return functional.linear(functional.linear(features, down, down_bias).relu(), up, up_bias)


def conditional_logits(features: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Scaled cosines ``[B, C]`` of unit rows ``[B, D]`` with class vectors ``[B, C, D]`` of their own."""
    return logit_scale * torch.einsum("bd,bcd->bc", features, functional.normalize(text, dim=-1))


class CoCoOp(PromptLearner):
    """A context that is learned with a network that shifts it, all vectors alike, by the image's feature.

    Every image has a text classifier of its own: C prompts an image and step, and C prompts an image at test.
    That is what the method costs. The network starts at random, so before training the logits are not those
    of zero-shot.

    Args:
        n_ctx: vectors where they start at random, 1 or more.
        words: start from the embeddings of these words, as many vectors as they have tokens; None starts at
            random.
        reduction: width of the image features over that of the network's hidden layer, 1 or more.
        epochs: 0 or more; the first warms up at 1e-5. None for those published, 10.
        lr: SGD's, on a cosine an epoch; above 0.
        weight_decay: 0 or more.
        batch_size: images a step.
        chunk: prompts that the text tower holds at a time; less takes less memory.
        seed: of what starts at random and the order of the images.

    Raises:
        ClipxError: a number out of range.

    Source: Zhou et al. 2022, "Conditional Prompt Learning for Vision-Language Models".
    """

    down_: Tensor
    down_bias_: Tensor
    up_: Tensor
    up_bias_: Tensor
    trained_parameters_: int

    def __init__(
        self,
        n_ctx: int = 4,
        words: str | None = "a photo of a",
        reduction: int = 16,
        epochs: int | None = None,
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
        batch_size: int = 1,
        chunk: int = 256,
        seed: int = 0,
    ) -> None:
        check_number("n_ctx", n_ctx, least=1)
        check_number("reduction", reduction, least=1)
        check_schedule(epochs, lr, weight_decay, batch_size, chunk)
        self.n_ctx, self.words, self.reduction = n_ctx, words, reduction
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
        """Learn context and network with cross-entropy.

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
        if self.words is not None:
            start = word_vectors(clip, self.words)
        else:
            start = random_vectors(clip, self.n_ctx, generator=named_generator(self.seed, "context"))
        context = PromptContext(clip, class_names, start, chunk=self.chunk)
        width, wide = start.shape[-1], support.features.shape[1]
        generator = named_generator(self.seed, "meta-net")
        layers = [
            parameter(drawn.to(support.features))
            for shape in ((max(1, wide // self.reduction), wide), (width, max(1, wide // self.reduction)))
            for drawn in _linear(shape, generator)
        ]

        def loss(rows: Tensor, truth: Tensor) -> Tensor:
            text = context(meta_net(rows, *layers).to(start.dtype))[:, 0].to(rows.dtype)
            return functional.cross_entropy(conditional_logits(rows, text, scale), truth)

        trained = [context.vectors, *layers]
        with frozen(clip):
            train(
                trained,
                loss,
                support,
                epochs=epochs_of(self.epochs, PUBLISHED_EPOCHS),
                lr=self.lr,
                weight_decay=self.weight_decay,
                batch_size=self.batch_size,
                seed=self.seed,
                progress=progress,
            )
        self.context_ = context.vectors.detach()
        self.down_, self.down_bias_, self.up_, self.up_bias_ = (layer.detach() for layer in layers)
        self.class_names_, self.logit_scale_ = [str(name) for name in class_names], scale
        self.trained_parameters_ = sum(each.numel() for each in trained)
        self.attach(clip)
        return self

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        clip = self._attached()
        features = check_queries(features, self.down_)
        if self._kept is None:
            self._kept = self._prompts(self.context_)
        found = [features.new_empty(0, len(self.class_names_))]
        with frozen(clip):
            for rows in features.split(max(1, self.chunk // len(self.class_names_))):
                shift = meta_net(rows, self.down_, self.down_bias_, self.up_, self.up_bias_)
                text = self._kept(shift.to(self.context_.dtype))[:, 0].to(rows.dtype)
                found.append(conditional_logits(rows, text, self.logit_scale_))
        return torch.cat(found)


def _linear(shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias as ``torch.nn.Linear`` starts them: uniform within one over the root of the inputs."""
    bound = 1 / math.sqrt(shape[1])
    weight = torch.rand(shape, generator=generator, dtype=torch.float64)
    bias = torch.rand(shape[0], generator=generator, dtype=torch.float64)
    return (2 * weight - 1) * bound, (2 * bias - 1) * bound
