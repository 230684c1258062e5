"""What the prompt learners share: CoOp's training schedule, and a context that serves any class names."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from clipx.adapters.checks import Support, check_fitted, check_number, checked
from clipx.adapters.protocol import copy, learnt
from clipx.adapters.views import Turns, first_of_groups
from clipx.errors import ClipxError
from clipx.features.encode import Progress
from clipx.models.clip import CLIP
from clipx.models.prompting import PromptContext

WARM_UP_RATE = 1e-5
MOMENTUM = 0.9
MANY_CLASSES = 1000


def published_epochs(shots: int, classes: int) -> int:
    """Epochs of CoOp: 50 for 1 shot a class, 100 for 2 to 7, 200 for more; for 1000 classes always 50.

    Source: Zhou et al. 2022, section 4.1, which names 1, 2, 4, 8 and 16 shots, and ImageNet.
    """
    if classes >= MANY_CLASSES or shots <= 1:
        return 50
    return 100 if shots < 8 else 200


def epochs_of(epochs: int | None, published: int) -> int:
    """The epochs asked for, None for those published; fewer than those are warned of."""
    if epochs is not None and epochs < published:
        warnings.warn(
            f"trained for {epochs} epochs of the {published} that the paper takes: adapter.epochs=null"
            " takes all",
            stacklevel=3,
        )
    return published if epochs is None else epochs


def images_a_class(support: Support) -> int:
    """Images of the class that has most."""
    return int(first_of_groups(support.labels, support.groups).bincount().max())


def rate(epoch: int, epochs: int, lr: float) -> float:
    """The learning rate of an epoch, from 0: one of warm-up at 1e-5, then a half cosine from ``lr``.

    The cosine is counted from the end of the warm-up and spans all epochs, so it does not get to 0.

    Source: Dassl, ``ConstantWarmupScheduler``, which CoOp's and CoCoOp's code use.
    """
    return WARM_UP_RATE if epoch == 0 else lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def named_generator(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for every purpose of a seed, so that no two draws are the same stream."""
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def train(
    parameters: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    support: Support,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train with CoOp's schedule: SGD with momentum, the learning rate set once an epoch.

    Images are shuffled every epoch; one with several views shows the next of them. A last batch that is not
    full is left out, unless it is the only one.

    Args:
        parameters: to be trained, in place.
        loss: of features ``[B, D]`` and labels int64 ``[B]``, a scalar.
        support: checked inputs.
        epochs: 0 or more.
        lr: see ``rate``.
        weight_decay: 0 or more.
        batch_size: images a step, 1 or more.
        seed: of the order.
        progress: told ``("step", done, total)``.

    Raises:
        ClipxError: the parameters are not finite afterwards.
    """
    parameters = list(parameters)
    turns, labels = Turns(support.groups), first_of_groups(support.labels, support.groups)
    last = len(labels) // batch_size * batch_size or len(labels)
    order = named_generator(seed, "order")
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)
    steps, done = epochs * -(-last // batch_size), 0
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch, epochs, lr)
        features = support.features[turns(epoch)]
        shuffled = torch.randperm(len(labels), generator=order)[:last].to(labels.device)
        for rows in shuffled.split(batch_size):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss(features[rows], labels[rows]).backward()
            optimizer.step()
            done += 1
            if progress is not None:
                progress("step", done, steps)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise ClipxError("training diverged: the context holds NaN or infinity", hint="a lower adapter.lr")


class PromptLearner:
    """What CoOp, CoCoOp and ECO do alike; each keeps the vectors it learned as ``context_``.

    Not fitted for one list of classes: the names are put into the prompts when they are needed, so saved is
    what was learned and nothing that follows from it.
    """

    needs = "text_tower"

    context_: Tensor
    class_names_: list[str]
    logit_scale_: float
    position: str = "end"
    chunk: int

    _clip: CLIP | None = None
    _kept: Any = None

    def attach(self, clip: CLIP) -> None:
        """Take the model that it was fitted with: called before ``logits`` and after loading."""
        self._clip, self._kept = clip, None

    def for_classes(
        self, text_classifier: Tensor, *, class_names: Sequence[str], clip: CLIP | None = None
    ) -> Self:
        """The learned context before other class names.

        Args:
            text_classifier: ``[C', D]``; the prompts take its place.
            class_names: C' of them.
            clip: the model that it was fitted with; None for the one attached.

        Raises:
            ClipxError: not fitted, or a context of each class its own.
        """
        check_fitted(self)
        if self.context_.shape[-3] > 1:
            raise ClipxError(
                "class-specific contexts know nothing of other classes",
                hint="adapter.class_specific=false learns one for all classes",
            )
        _check_names(class_names, len(text_classifier))
        other: Self = copy(self)
        vars(other).update(learnt(self))
        other.class_names_ = [str(name) for name in class_names]
        other.attach(clip or self._attached())
        return other

    def _attached(self) -> CLIP:
        check_fitted(self)
        if self._clip is None:
            raise ClipxError(f"this {type(self).__name__} has no model", hint="call attach(clip) first")
        return self._clip

    def _prompts(self, vectors: Tensor) -> PromptContext:
        """Prompts of the classes with these vectors ``[N, 1 or C, M, W]``."""
        return PromptContext(
            self._attached(), self.class_names_, vectors, position=self.position, chunk=self.chunk
        )


def checked_shots(
    features: Tensor,
    labels: Tensor,
    text_classifier: Tensor,
    *,
    logit_scale: float,
    clip: CLIP,
    class_names: Sequence[str],
    validation: tuple[Tensor, Tensor] | None,
    groups: Tensor | None,
) -> Support:
    """Check what a prompt learner is given, and bring it to the model's device.

    Raises:
        ClipxError: see ``checks.checked``; another number of names than of classes.
    """
    _check_names(class_names, len(text_classifier))
    return checked(
        features.to(clip.device),
        labels,
        text_classifier,
        logit_scale=logit_scale,
        validation=validation,
        groups=groups,
    )


def check_schedule(epochs: int | None, lr: float, weight_decay: float, batch_size: int, chunk: int) -> None:
    """Check the hyperparameters all of them share.

    Raises:
        ClipxError: naming the one out of range.
    """
    if epochs is not None:
        check_number("epochs", epochs)
    check_number("lr", lr, open_below=True)
    check_number("weight_decay", weight_decay)
    check_number("batch_size", batch_size, least=1)
    check_number("chunk", chunk, least=1)


def _check_names(class_names: Sequence[str], classes: int) -> None:
    if len(class_names) != classes:
        raise ClipxError(f"there are {len(class_names)} class names for {classes} classes")
