"""CLAP: a linear probe from the texts on, each class held near its own as firmly as zero-shot is right."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    check_fitted,
    check_number,
    check_queries,
    checked,
    shots_per_class,
)
from clipx.adapters.training import descend, half_cosine, parameter
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits, zero_shot_of

WARM_UP_RATE = 1e-5


def class_strengths(zero_shot: Tensor, labels: Tensor) -> Tensor:
    """How firmly each class is held, ``[C]`` in [0, 1]: the mean probability of it on its own shots.

    Args:
        zero_shot: logits ``[N, C]`` of the shots, scaled.
        labels: int64 ``[N]``, of every class at least one.

    Source: Silva-Rodriguez et al. 2024, equation 11; Bendou et al. 2025, section 4.
    """
    own = zero_shot.softmax(1).gather(1, labels[:, None])[:, 0]
    sums = own.new_zeros(zero_shot.shape[1]).index_add(0, labels, own)
    return sums / labels.bincount(minlength=len(sums))


def warm_cosine(step: int, steps: int, lr: float, warm_up: int) -> float:
    """The share of ``lr`` at a step: from 1e-5 up on a line while it warms up, then on a half cosine to 0."""
    if step < warm_up:
        low = WARM_UP_RATE / lr
        return low + (1 - low) * step / warm_up
    return half_cosine(step - warm_up, steps - warm_up)


def train_prototypes(
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    strengths: Tensor,
    scale: float,
    correction: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    lr: float,
    weight_decay: float,
    steps: int,
    batch_size: int,
    warm_up: int,
    seed: int,
) -> Tensor:
    """Class prototypes ``[C, D]``, of any length, trained from the texts on.

    The loss is the cross-entropy and the mean over classes of ``strength_c |P_c - T_c|^2``. Shots are
    shuffled every epoch; a last batch that is not full is left out, unless it is the only one.

    Args:
        features: shots, unit rows ``[N, D]``.
        labels: int64 ``[N]``.
        text: ``[C, D]`` unit rows.
        strengths: ``[C]``, see ``class_strengths``.
        scale: of the logits ``s f.P_c``.
        correction: of unit prototypes ``[C, D]`` and places of shots ``[B]``, what is added to the logits
            ``[B, C]`` before they are scaled; it is followed, but has no gradient.
        lr, weight_decay: AdamW's, the rate as ``warm_cosine`` has it.
        steps: 0 or more.
        batch_size: shots a step.
        warm_up: steps of it.
        seed: of the order of the shots.
    """
    prototypes = parameter(text)
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(labels) // batch_size)
    order = torch.arange(len(labels), device=labels.device)

    wanted = functional.one_hot(labels, len(text)).to(text)
    pull = 2 * strengths[:, None] / len(text)

    def gradient(step: int) -> Tensor:
        nonlocal order
        batch = step % batches
        if batch == 0:
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
        rows = order[batch * batch_size : (batch + 1) * batch_size]
        length = torch.linalg.vector_norm(prototypes, dim=1, keepdim=True)
        unit, shots = prototypes / length, features[rows]
        cosines = shots @ unit.T
        if correction is not None:
            cosines += correction(unit, rows)
        wrong = (scale * cosines).softmax(1).sub_(wanted[rows])
        to_unit = (scale / len(rows)) * wrong.T @ shots
        across = to_unit - unit * (to_unit * unit).sum(1, keepdim=True)  # its length is normalised away
        return across / length + pull * (prototypes - text)

    optimizer = torch.optim.AdamW([prototypes], lr=lr, weight_decay=weight_decay, fused=True)
    descend(
        gradient, prototypes, optimizer, steps, rate=lambda step, steps: warm_cosine(step, steps, lr, warm_up)
    )
    return prototypes.detach()


class CLAPHead:
    """Class prototypes in the place of the texts, trained near them: ``s f.P_c`` with unit P.

    A class whose shots zero-shot takes for what they are is held firmly near its text, another is free to
    move. No hyperparameter is searched. The training is that of ProKeR's CLAP base; CLAP's own paper trains
    with SGD.

    Args:
        lr: AdamW's, above 0, see ``warm_cosine``.
        weight_decay: 0 or more.
        steps: 0 or more; 0 is zero-shot.
        batch_size: rows a step; each view of an image is a row.
        warm_up: steps of it.
        seed: of the order of the rows.

    Raises:
        ClipxError: a number out of range.

    Source: Silva-Rodriguez et al. 2024, "A Closer Look at the Few-Shot Adaptation of Large Vision-Language
        Models"; Bendou et al. 2025, section 4.
    """

    needs = "features"

    prototypes_: Tensor
    strengths_: Tensor
    text_classifier_: Tensor
    logit_scale_: float

    def __init__(
        self,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        steps: int = 2000,
        batch_size: int = 64,
        warm_up: int = 50,
        seed: int = 0,
    ) -> None:
        check_training(lr, weight_decay, steps, batch_size, warm_up)
        self.lr, self.weight_decay, self.steps = lr, weight_decay, steps
        self.batch_size, self.warm_up, self.seed = batch_size, warm_up, seed

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
    ) -> Self:
        """Train the prototypes; nothing is chosen on validation.

        Raises:
            ClipxError: see ``checks.checked``; a class without a shot, whose strength nothing tells.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        shots_per_class(support, missing="error")
        scale, text = float(logit_scale), support.text_classifier
        self.strengths_ = class_strengths(zero_shot_logits(support.features, text, scale), support.labels)
        trained = train_prototypes(
            support.features,
            support.labels,
            text,
            self.strengths_,
            scale,
            lr=self.lr,
            weight_decay=self.weight_decay,
            steps=self.steps,
            batch_size=self.batch_size,
            warm_up=self.warm_up,
            seed=self.seed,
        )
        self.prototypes_ = functional.normalize(trained, dim=-1)
        self.text_classifier_, self.logit_scale_ = text, scale
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.prototypes_)
        return zero_shot_logits(features, self.prototypes_, self.logit_scale_)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: they have no prototype but their text."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


def check_training(lr: float, weight_decay: float, steps: int, batch_size: int, warm_up: int) -> None:
    """Check the hyperparameters of ``train_prototypes``.

    Raises:
        ClipxError: naming the one out of range.
    """
    check_number("lr", lr, open_below=True)
    check_number("weight_decay", weight_decay)
    check_number("steps", steps)
    check_number("batch_size", batch_size, least=1)
    check_number("warm_up", warm_up)
