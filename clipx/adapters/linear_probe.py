"""Linear probe: logistic regression on features, texts ignored; LP++: with zero-shot logits blended in."""

import math
from collections.abc import Sequence
from typing import Any, Self

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
from clipx.adapters.logistic import LogisticPath, Solution
from clipx.adapters.search import hits
from clipx.adapters.training import Task, checked_task
from clipx.adapters.zero_shot import ZeroShot, zero_shot_of
from clipx.errors import ClipxError

COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
LPPP_INIT = 250.0


class LinearProbe:
    """Multinomial logistic regression with an L2 penalty, its strength searched coarsely, then by halving.

    Args:
        c: inverse of the penalty's strength where there is no validation; above 0.
        search: choose it on validation, where there is one: the best of seven powers of ten, then the better
            end of an interval about it, which is halved on a log scale.
        rounds: of halving, 0 or more.
        max_iter: of LBFGS. At C = 1e6 it may not be enough, which does no harm and is counted.

    Raises:
        ClipxError: a number out of range.

    Source: Radford et al. 2021, appendix A.3; the search is that of CoOp's ``lpclip``.
    """

    needs = "features"

    weight_: Tensor
    bias_: Tensor
    c_: float
    unconverged_: int

    def __init__(self, c: float = 1.0, search: bool = True, rounds: int = 8, max_iter: int = 1000) -> None:
        check_number("c", c, open_below=True)
        check_number("rounds", rounds)
        check_number("max_iter", max_iter, least=1)
        self.c, self.search, self.rounds, self.max_iter = c, search, rounds, max_iter

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
        """Fit the classifier; of ``text_classifier`` only the number of classes counts.

        Raises:
            ClipxError: see ``checks.checked``; a class without a shot, which could never be predicted.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        shots_per_class(support, missing="error")
        rows, basis = _row_space(support.features)
        path = LogisticPath(rows.double(), support.labels, support.classes)
        fitted: dict[float, Solution] = {}

        def solve(c: float) -> Solution:
            if c not in fitted:
                near = min(fitted, key=lambda known: abs(math.log(known / c)), default=None)
                start = None if near is None else fitted[near]
                fitted[c] = path.fit(c, start=start, max_iter=self.max_iter)
            return fitted[c]

        self.c_ = float(self.c)
        if self.search and support.validation is not None:
            held, truth = support.validation
            held_rows = held if basis is None else held @ basis
            self.c_ = search_c(lambda c: hits(solve(c).logits(held_rows), truth), self.rounds)
        best = solve(self.c_)
        self.unconverged_ = sum(not one.converged for one in fitted.values())
        learnt = best.weight.to(support.features)
        self.weight_ = learnt if basis is None else learnt @ basis.T
        self.bias_ = best.bias.to(support.features)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        return torch.addmm(self.bias_, check_queries(features, self.weight_), self.weight_.T)


def search_c(right: Any, rounds: int) -> float:
    """The penalty's inverse strength: the first best of ``COARSE``, then the winner of the last halving.

    Args:
        right: validation answers that are right at a value.
        rounds: of halving.
    """
    peak = max(COARSE, key=right)  # the first of equals
    left, end, winner = 0.1 * peak, 10 * peak, peak
    for _ in range(rounds):
        middle = 10 ** ((math.log10(left) + math.log10(end)) / 2)
        if right(left) < right(end):
            winner, left = end, middle
        else:
            winner, end = left, middle
    return winner


def _row_space(features: Tensor) -> tuple[Tensor, Tensor | None]:
    """Coordinates ``[N, R]`` of rows ``[N, D]`` in the space they span, and its basis ``[D, R]``.

    With an L2 penalty the best weights lie in that space, so few shots need few coordinates and the result is
    the same. None where it saves nothing.
    """
    if len(features) >= features.shape[1]:
        return features, None
    basis = torch.linalg.qr(features.double().T).Q.to(features)
    return features @ basis, basis


def step_sizes(features: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The step sizes of LP++ for weights and for class multipliers, from the data alone, ``[...]`` each.

    Args:
        features: ``[..., N, D]`` unit rows.
        similarity: their cosines with the texts, ``[..., N, C]``.

    Source: Huang et al. 2024, ``calculate_lr_w`` and ``calculate_lr_alpha``.
    """
    count = features.shape[-2]
    largest = torch.linalg.matrix_norm(features, ord=2).square()
    return 4 * count / largest, count / (4 * similarity.square().sum(-2).amax(-1))


def starting_weights(features: Tensor, labels: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Where LP++ starts: each class's sum of features ``[C, D]``, and 250 times the mean own-class cosine.

    Counts may differ by class; a class without a shot starts at 0 and is left out of the mean.

    Source: Huang et al. 2024, ``calculate_init_alpha``.
    """
    classes = similarity.shape[-1]
    counts = labels.bincount(minlength=classes)
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    own = similarity.gather(1, labels[:, None])[:, 0]
    means = own.new_zeros(classes).index_add(0, labels, own) / counts.clamp_min(1)
    return sums, LPPP_INIT * means[counts > 0].mean()


class LPpp:
    """A linear probe plus each class's own multiple of its zero-shot cosine, with steps that data sets.

    ``logits = x W + b + a * cos``. Weights and biases take momentum steps; the multipliers ``a`` a plain one
    every few epochs. With validation the last of the best epochs is kept, without it the last.

    Args:
        epochs: full-batch, 0 or more.
        momentum: in [0, 1).
        alpha_every: epochs between steps of the multipliers, 1 or more.
        accumulate_alpha_grad: step by the sum of all their gradients so far, as the code does, which never
            clears it; the paper's scheme takes the last alone.
        seed: of the biases at the start.

    Raises:
        ClipxError: a number out of range.

    Source: Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP".
    """

    needs = "features"

    weight_: Tensor
    bias_: Tensor
    multipliers_: Tensor
    text_classifier_: Tensor
    start_: float
    epoch_: int

    def __init__(
        self,
        epochs: int = 300,
        momentum: float = 0.9,
        alpha_every: int = 10,
        accumulate_alpha_grad: bool = False,
        seed: int = 0,
    ) -> None:
        check_number("epochs", epochs)
        check_number("momentum", momentum, most=1 - 1e-9)
        check_number("alpha_every", alpha_every, least=1)
        self.epochs, self.momentum, self.alpha_every = epochs, momentum, alpha_every
        self.accumulate_alpha_grad, self.seed = accumulate_alpha_grad, seed

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
        """Train weights, biases and multipliers; cosines enter as they are, without ``logit_scale``.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        task = Task(features, labels, text_classifier, logit_scale, validation, groups)
        vars(self).update(self.learn([task])[0])
        return self

    def learn(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The learnt attributes of each of several tasks of the same shapes, trained at once."""
        supports = [checked_task(task) for task in tasks]
        for support in supports:
            shots_per_class(support, missing="warn")
        features = torch.stack([support.features for support in supports])
        text = torch.stack([support.text_classifier for support in supports])
        wanted = torch.stack([functional.one_hot(support.labels, support.classes) for support in supports])
        similarity = features @ text.transpose(1, 2)
        lr_weight, lr_alpha = (size[:, None] for size in step_sizes(features, similarity))
        starts = [
            starting_weights(support.features, support.labels, one)
            for support, one in zip(supports, similarity, strict=True)
        ]
        count, dims = features.shape[1:]
        generator = torch.Generator().manual_seed(self.seed)
        bias = torch.rand(text.shape[1], generator=generator, dtype=torch.float64) * 2 - 1
        bias = (bias / math.sqrt(dims)).to(features).repeat(len(tasks), 1)
        weight = torch.stack([sums for sums, _ in starts])
        alpha = torch.stack([start for _, start in starts])[:, None].repeat(1, text.shape[1])
        moved_weight, moved_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        gathered = torch.zeros_like(alpha)
        kept = [(weight[place], bias[place], alpha[place], 0) for place in range(len(tasks))]
        best = [-1] * len(tasks)
        held = [
            None if one.validation is None else (*one.validation, one.validation[0] @ one.text_classifier.T)
            for one in supports
        ]
        for epoch in range(1, self.epochs + 1):
            logits = (
                torch.baddbmm(bias[:, None], features, weight.transpose(1, 2)) + alpha[:, None] * similarity
            )
            slope = (logits.softmax(-1) - wanted) / count
            gradient = (slope * similarity).sum(1)
            gathered = gathered + gradient if self.accumulate_alpha_grad else gradient
            moved_weight = self.momentum * moved_weight + slope.transpose(1, 2) @ features
            moved_bias = self.momentum * moved_bias + slope.sum(1)
            weight = weight - lr_weight[:, :, None] * moved_weight
            bias = bias - lr_weight * moved_bias
            if epoch % self.alpha_every == 0:
                alpha = alpha - lr_alpha * gathered
            for place, rows in enumerate(held):
                right = 0
                if rows is not None:
                    scores = rows[0] @ weight[place].T + bias[place] + alpha[place] * rows[2]
                    right = int(hits(scores, rows[1]))
                if right >= best[place]:
                    best[place] = right
                    kept[place] = (weight[place], bias[place], alpha[place], epoch)
        return [
            {
                "weight_": one[0].clone(),
                "bias_": one[1].clone(),
                "multipliers_": one[2].clone(),
                "text_classifier_": support.text_classifier,
                "start_": float(start),
                "epoch_": one[3],
            }
            for one, support, (_, start) in zip(kept, supports, starts, strict=True)
        ]

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        similarity = features @ self.text_classifier_.T
        return torch.addmm(self.bias_, features, self.weight_.T) + self.multipliers_ * similarity

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``, scaled by the multiplier all classes started from."""
        check_fitted(self)
        if not self.start_ > 0:
            raise ClipxError("the shots are unlike their own texts: LP++ has no scale for other classes")
        return zero_shot_of(text_classifier, self.text_classifier_, self.start_)
