"""Gaussian discriminant analysis: classes are Gaussians of one covariance, beside zero-shot; closed form."""

import math
import warnings
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from clipx.adapters.checks import (
    check_choice,
    check_fitted,
    check_number,
    check_queries,
    checked,
    shots_per_class,
)
from clipx.adapters.protocol import copy
from clipx.adapters.search import ZeroShotEnsemble, first_best
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.errors import ClipxError

ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PRECISIONS = ("ks", "pinv", "ledoit", "oas")
PRIORS = ("uniform", "empirical")


def class_means(features: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """The mean feature of every class ``[C, D]``; counts ``[C]`` must be above 0."""
    sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, labels, features)
    return sums / counts.to(features)[:, None]


def apply_precision(kind: str, deviations: Tensor, classes: int, rows: Tensor) -> Tensor:
    """Multiply rows ``[M, D]`` by the estimated precision matrix of deviations from class means ``[N, D]``.

    ``ks``: D times the inverse of ``(N - 1) S + tr(S) I``, S the covariance of the deviations: an empirical
    Bayes ridge. The others estimate the covariance and invert it: ``pinv`` as it is, unbiased (what the code
    does for base-to-new: with equal shots it is the mean of the classes' covariances), ``ledoit`` and ``oas``
    shrunk towards the sphere.

    Where all deviations are 0 the precision is taken as 0, as a pseudo-inverse has it.

    Source: Wang et al. 2024, equation 4, after Kubokawa and Srivastava 2008; Ledoit and Wolf 2004; Chen et
        al. 2010.
    """
    count, dims = deviations.shape
    if kind in ("ledoit", "oas"):
        from sklearn.covariance import ledoit_wolf, oas

        estimate = ledoit_wolf if kind == "ledoit" else oas
        covariance, _ = estimate(deviations.double().cpu().numpy(), assume_centered=True)
        matrix, factor = torch.from_numpy(covariance).to(deviations), 1.0
    else:
        matrix, factor = _gram(deviations), float(dims)
        if kind == "pinv":
            matrix = (matrix.triu() + matrix.triu(1).T) / max(1, count - classes)
            return rows @ torch.linalg.pinv(matrix, hermitian=True)
        matrix.diagonal().add_(matrix.trace() / max(1, count - 1))
    if not matrix.diagonal().max() > 0:
        return torch.zeros_like(rows)
    # The ridge bounds the condition number by N, so Cholesky is as good as a pseudo-inverse, and far faster.
    return factor * torch.cholesky_solve(rows.T, torch.linalg.cholesky(matrix, upper=True), upper=True).T


def _gram(rows: Tensor, blocks: int = 4) -> Tensor:
    """The upper triangle of ``rows.T @ rows``, in stripes that leave most of the lower one out.

    This product is what takes the time.
    """
    gram = rows.new_zeros(rows.shape[1], rows.shape[1])
    width = -(-rows.shape[1] // blocks)
    for left in range(0, rows.shape[1], width):
        gram[left : left + width, left:] = rows[:, left : left + width].T @ rows[:, left:]
    return gram


def linear_discriminant(means: Tensor, weights: Tensor, log_priors: Tensor | float) -> tuple[Tensor, Tensor]:
    """Weights ``[C, D]`` and biases ``[C]`` of the discriminant, of means and the precision times means."""
    return weights, log_priors - (means * weights).sum(1) / 2


class GDA:
    """Gaussian discriminant analysis added to the zero-shot logits: ``s f.t + alpha (f.w + b)``.

    Every view is a sample of its own. With one view of one shot a class nothing is known of the covariance:
    the result is zero-shot, with a warning.

    Args:
        alpha: weight of the discriminant where there is no validation, 0 or more; 0 is zero-shot, to the bit.
        search: choose alpha on validation, where there is one.
        alphas: the grid, ascending.
        precision: ``ks``, ``pinv``, ``ledoit`` or ``oas``, see ``apply_precision``.
        prior: of the classes: ``uniform``, or ``empirical``, as frequent as among the shots.
        neighbours: base features that stand in for the images of a class without any, see ``for_classes``.
        text_copies: how often its text counts beside them.

    Raises:
        ClipxError: a number out of range, an unknown precision or prior.

    Source: Wang et al. 2024, "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation".
    """

    needs = "features"

    weight_: Tensor
    bias_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    alpha_: float
    base_: Tensor

    def __init__(
        self,
        alpha: float = 0.1,
        search: bool = True,
        alphas: Sequence[float] = ALPHAS,
        precision: str = "ks",
        prior: str = "uniform",
        neighbours: int = 64,
        text_copies: int = 16,
    ) -> None:
        check_number("alpha", alpha)
        for value in alphas:
            check_number("alphas", value)
        if not len(alphas):
            raise ClipxError("alphas is empty")
        check_choice("precision", precision, PRECISIONS)
        check_choice("prior", prior, PRIORS)
        check_number("neighbours", neighbours, least=2)
        check_number("text_copies", text_copies)
        self.alpha, self.search, self.alphas = alpha, search, alphas
        self.precision, self.prior = precision, prior
        self.neighbours, self.text_copies = neighbours, text_copies

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
        """Estimate means and precision, and choose alpha on validation.

        Raises:
            ClipxError: see ``checks.checked``; a class without a shot.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        counts = shots_per_class(support, missing="error")
        means = class_means(support.features, support.labels, counts)
        deviations = support.features - means[support.labels]
        if int(counts.max()) == 1:
            warnings.warn(
                "one row a class tells nothing of the covariance: gda is zero-shot here; "
                "take 2 shots or more, or several views",
                stacklevel=2,
            )
        priors = counts / counts.sum() if self.prior == "empirical" else counts.new_ones(()) / len(counts)
        weights = apply_precision(self.precision, deviations, len(counts), means)
        self.weight_, self.bias_ = linear_discriminant(means, weights, priors.to(means).log())
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        self.alpha_ = float(self.alpha)
        self.base_ = support.features
        if self.search and support.validation is not None:
            rows, truth = support.validation
            zero_shot = zero_shot_logits(rows, self.text_classifier_, self.logit_scale_)
            counted = ZeroShotEnsemble.grid(zero_shot, [self._discriminant(rows)], truth, self.alphas)
            best = first_best(counted, len(truth))
            if best is not None:
                self.alpha_ = float(self.alphas[best.place[1]])
        return self

    def _discriminant(self, features: Tensor) -> Tensor:
        return torch.addmm(self.bias_, features, self.weight_.T)

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        if self.alpha_ == 0:
            return zero_shot_logits(features, self.text_classifier_, self.logit_scale_)
        # Both parts are linear, so their sum is one linear classifier.
        weight = self.logit_scale_ * self.text_classifier_ + self.alpha_ * self.weight_
        return torch.addmm(self.alpha_ * self.bias_, features, weight.T)

    def for_classes(self, text_classifier: Tensor) -> "GDA":
        """The same for other classes ``[C', D]``, whose images are the base features nearest to their text.

        Of each class the mean is that of its neighbours and copies of its text; the precision is the mean of
        the classes' own, about their texts; alpha stays.

        Raises:
            ClipxError: not fitted, bad rows, or a file of an earlier version, which has no base features.

        Source: Wang et al. 2024, section 3.3 and the base-to-new script, whose dimension 512 is D here.
        """
        check_fitted(self)
        if not hasattr(self, "base_"):
            raise ClipxError(
                "this GDA was saved before it kept the base features that new classes are made from",
                hint="fit it again",
            )
        text = check_queries(text_classifier, self.text_classifier_)
        near = (text @ self.base_.T).topk(min(self.neighbours, len(self.base_)), dim=1).indices
        found = self.base_[near]
        means = (found.sum(1) + self.text_copies * text) / (near.shape[1] + self.text_copies)
        weights = torch.zeros_like(text)
        for one, centre in zip(found, text, strict=True):
            weights += apply_precision("ks", one - centre, 1, means) / len(text)
        fitted: GDA = copy(self)
        fitted.weight_, fitted.bias_ = linear_discriminant(means, weights, -math.log(len(text)))
        fitted.text_classifier_, fitted.logit_scale_, fitted.alpha_ = text, self.logit_scale_, self.alpha_
        fitted.base_ = self.base_
        return fitted
