"""Multinomial logistic regression for a whole sweep of L2 strengths: one decomposition, warm starts.

``0.5 |W|^2 + C sum_i CE_i`` with a free bias, as scikit-learn and the CLIP paper have it: ``C`` multiplies a
sum, so more rows weaken the penalty. Two classes have a single vector, of the second against the first.

The rows are centred and rotated into the eigenvectors of their covariance once. There the Hessian is close
to diagonal for every ``C`` at once (Böhning 1992), which makes a preconditioner for L-BFGS that takes most
iterations away. Logits are linear in the weights, so a line search costs no product with the data.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import ClipxError

MEMORY = 10
"""Steps that L-BFGS remembers, as in scikit-learn."""

_GAIN = 0.1
_SUFFICIENT = 1e-4
_HALVINGS = 25


@dataclass(frozen=True)
class Solution:
    """A fitted classifier: logits of rows ``[M, D]`` are ``rows @ weight.T + bias``.

    ``weight`` ``[C, D]`` and ``bias`` ``[C]`` over all classes, with a bias of -inf for one without a row to
    learn from; ``gradient`` the largest entry of the mean loss's gradient at the end; ``iterations`` taken;
    ``converged`` whether that and the gain of another step fell below the tolerance.
    """

    weight: Tensor
    bias: Tensor
    gradient: float
    iterations: int
    converged: bool

    def logits(self, rows: Tensor) -> Tensor:
        """Logits ``[M, C]`` of rows ``[M, D]``."""
        return torch.addmm(self.bias, rows.to(self.weight), self.weight.T)


class LogisticPath:
    """Rows and labels made ready to be fitted at any number of strengths.

    Args:
        rows: ``[N, D]``, finite; float64 is solved in float64, anything else in float32.
        labels: int64 ``[N]`` in [0, classes).
        classes: how many columns the classifier has; those without a row get a bias of -inf.

    Raises:
        ClipxError: shapes that do not match, a label outside, a value that is not finite, or rows of fewer
            than two classes.
    """

    def __init__(self, rows: Tensor, labels: Tensor, classes: int) -> None:
        if rows.ndim != 2 or labels.shape != rows.shape[:1]:
            raise ClipxError(f"rows {tuple(rows.shape)} and labels {tuple(labels.shape)} do not match")
        if not rows.isfinite().all():
            raise ClipxError("features hold NaN or infinity")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ClipxError(f"labels must lie in [0, {classes})", hint="rows without a label are left out")
        self.present = labels.unique()
        if len(self.present) < 2:
            raise ClipxError(
                f"the rows are of {len(self.present)} class: there is nothing to tell apart",
                hint="labelled rows of two classes or more",
            )
        self.classes = classes
        rows = rows if rows.dtype == torch.float64 else rows.float()
        self._mean = rows.mean(0)
        centred = rows - self._mean
        values, self._axes = torch.linalg.eigh((centred.T @ centred).double())
        self._axes = self._axes.to(rows)
        self._values = values.clamp_min(0).to(rows)
        self._rows = centred @ self._axes
        self._labels = torch.searchsorted(self.present, labels)
        self._wanted = functional.one_hot(self._labels, len(self.present)).to(rows)

    def fit(
        self,
        c: float,
        *,
        start: Solution | None = None,
        max_iter: int = 1000,
        tolerance: float = 1e-4,
    ) -> Solution:
        """The best weights at a strength.

        Args:
            c: inverse strength of the penalty, above 0.
            start: of a near strength, or of other rows of the same width and classes; None for zeros.
            max_iter: of L-BFGS.
            tolerance: of the largest entry of the gradient of ``mean CE + |W|^2 / (2 C N)``, as scikit-learn
                has it; beside it the next step must promise to take less than a tenth of it from that, in
                nats.

        Raises:
            ClipxError: c is not above 0 and finite.
        """
        if not 0 < c < float("inf"):
            raise ClipxError(f"c is {c}, must be above 0 and finite")
        # Two vectors of opposite sign carry half the penalty of the single one that two classes have.
        ridge = 1 / ((c / 2 if len(self.present) == 2 else c) * len(self._rows))
        point = self._zeros() if start is None else self._own(start)
        logits = self._forward(point)
        loss, gradient, curvature = self._gradient(point, logits, ridge)
        metric = self._metric(curvature, ridge)
        steps: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=MEMORY)
        iterations = 0
        converged = False
        while True:
            direction = _two_loops(gradient, steps, metric)
            slope = float((direction * gradient).sum())
            if slope > 0:  # rounding has eaten the curvature: start the memory anew
                steps.clear()
                direction = -metric * gradient
                slope = float((direction * gradient).sum())
            largest = float(gradient.abs().max())
            # A warm start has a small gradient in flat directions that a long way leads along.
            converged = largest <= tolerance and -slope / 2 <= _GAIN * tolerance
            if converged or iterations == max_iter:
                break
            moved = self._forward(direction)
            length = 1.0
            for _ in range(_HALVINGS):
                trial = self._loss(point + length * direction, logits + length * moved, ridge)
                if trial <= loss + _SUFFICIENT * length * slope:
                    break
                length /= 2
            else:
                break  # no step of this precision makes it better
            point, logits = point + length * direction, logits + length * moved
            loss, after, _ = self._gradient(point, logits, ridge)
            step, change = length * direction, after - gradient
            product = float((step * change).sum())
            if product > 0:
                steps.append((step, change, product))
            gradient = after
            iterations += 1
        return self._solution(point, largest, iterations, converged)

    def _zeros(self) -> Tensor:
        return self._rows.new_zeros(self._rows.shape[1] + 1, len(self.present))

    def _own(self, found: Solution) -> Tensor:
        """A solution in the coordinates of this path; a class that it knew nothing of starts at zero."""
        weight, bias = found.weight[self.present].to(self._rows), found.bias[self.present].to(self._rows)
        bias = bias.where(bias.isfinite(), torch.zeros_like(bias)) + weight @ self._mean
        return torch.cat([(weight @ self._axes).T, bias[None]])

    def _forward(self, point: Tensor) -> Tensor:
        return torch.addmm(point[-1], self._rows, point[:-1])

    def _loss(self, point: Tensor, logits: Tensor, ridge: float) -> float:
        each = logits.logsumexp(1) - logits.gather(1, self._labels[:, None])[:, 0]
        return float(each.double().mean() + ridge / 2 * point[:-1].double().square().sum())

    def _gradient(self, point: Tensor, logits: Tensor, ridge: float) -> tuple[float, Tensor, float]:
        """Loss, its gradient, and the mean curvature p (1 - p) of a class."""
        shares = logits.softmax(1)
        curvature = float((shares - shares.square()).mean())
        slope = shares.sub_(self._wanted).div_(len(logits))
        gradient = torch.cat([self._rows.T @ slope + ridge * point[:-1], slope.sum(0)[None]])
        return self._loss(point, logits, ridge), gradient, curvature

    def _metric(self, curvature: float, ridge: float) -> Tensor:
        """The inverse of a diagonal close to the Hessian, ``[D + 1, 1]``."""
        count = len(self._rows)
        curvature = max(curvature, 1e-6)
        diagonal = torch.cat(
            [curvature * self._values / count + ridge, self._values.new_full((1,), curvature)]
        )
        return diagonal.clamp_min(torch.finfo(diagonal.dtype).eps).reciprocal()[:, None]

    def _solution(self, point: Tensor, gradient: float, iterations: int, converged: bool) -> Solution:
        own = (self._axes @ point[:-1]).T
        weight = own.new_zeros(self.classes, own.shape[1])
        bias = own.new_full((self.classes,), -torch.inf)
        weight[self.present] = own
        bias[self.present] = point[-1] - own @ self._mean
        return Solution(weight, bias, gradient, iterations, converged)


def _two_loops(gradient: Tensor, steps: deque[tuple[Tensor, Tensor, float]], metric: Tensor) -> Tensor:
    """The L-BFGS direction from a diagonal first guess of the inverse Hessian (Nocedal 1980)."""
    rest, shares = gradient.clone(), []
    for step, change, product in reversed(steps):
        share = float((step * rest).sum()) / product
        shares.append(share)
        rest.add_(change, alpha=-share)
    rest.mul_(metric)
    if steps:
        step, change, product = steps[-1]
        rest.mul_(product / float((change * metric * change).sum()))
    for (step, change, product), share in zip(steps, reversed(shares), strict=True):
        back = float((change * rest).sum()) / product
        rest.add_(step, alpha=share - back)
    return -rest
