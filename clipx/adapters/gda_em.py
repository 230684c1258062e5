"""Label-free Gaussian discriminant analysis: expectation-maximisation from the zero-shot classifier on."""

from typing import Self

import torch
from torch import Tensor

from clipx.adapters.checks import check_fitted, check_number, check_queries, checked
from clipx.adapters.gda import linear_discriminant
from clipx.adapters.search import ZeroShotEnsemble
from clipx.adapters.zero_shot import zero_shot_logits


def expectation_maximisation(
    features: Tensor,
    text_classifier: Tensor,
    logit_scale: float,
    alpha: float,
    *,
    iterations: int = 10,
    tolerance: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """The discriminant of features without labels: weights ``[C, D]`` and biases ``[C]``.

    Posteriors start as zero-shot's; means and the shared covariance (of the classes' weighted ones the mean,
    with the ridge of GDA's estimator) follow from them, and they from both.

    Args:
        features: ``[N, D]`` unit rows, no label known.
        text_classifier: ``[C, D]`` unit rows.
        logit_scale: of the zero-shot logits.
        alpha: weight of the discriminant in the posteriors.
        iterations: at most so many.
        tolerance: stop once no more than this share of the rows changes its class.

    Source: Wang et al. 2024, section 3.4. The number of iterations, the end and the scale of the precision
        are not given: here it is the inverse of a covariance, so that alpha 1 weighs log-densities fully.
    """
    zero_shot = zero_shot_logits(features, text_classifier, logit_scale)
    logits, classes = zero_shot, len(text_classifier)
    weights, bias = torch.zeros_like(text_classifier), zero_shot.new_zeros(classes)
    for _ in range(iterations):
        posterior = logits.softmax(1)
        mass = posterior.sum(0).clamp_min(1e-12)
        means = posterior.T @ features / mass[:, None]
        # E[x x^T] - m m^T, so that no [N, C, D] of deviations stands in memory.
        second = (features * (posterior / mass).sum(1, keepdim=True)).T @ features
        covariance = (second - means.T @ means) / classes
        covariance.diagonal().add_(covariance.trace() / max(1, len(features) - 1))
        weights, bias = linear_discriminant(means, torch.linalg.solve(covariance, means.T).T, 0.0)
        before, logits = logits.argmax(1), zero_shot + alpha * torch.addmm(bias, features, weights.T)
        if float((logits.argmax(1) != before).float().mean()) <= tolerance:
            break
    return weights, bias


class GaussianEM:
    """GDA fitted without labels, to the images it is given: ``s f.t + alpha (f.w + b)``.

    Args:
        alpha: weight of the discriminant, 0 or more; 0 is zero-shot, to the bit.
        iterations: 0 or more; 0 is zero-shot.
        tolerance: stop once no more than this share of the images changes its class, in [0, 1].

    Raises:
        ClipxError: a number out of range.

    Source: Wang et al. 2024, section 3.4.
    """

    needs = "features"

    weight_: Tensor
    bias_: Tensor
    text_classifier_: Tensor
    logit_scale_: float

    def __init__(self, alpha: float = 1.0, iterations: int = 10, tolerance: float = 1e-3) -> None:
        check_number("alpha", alpha)
        check_number("iterations", iterations)
        check_number("tolerance", tolerance, most=1)
        self.alpha, self.iterations, self.tolerance = alpha, iterations, tolerance

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
        """Fit to the features; their labels are checked and not looked at, and nothing is searched.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        self.weight_, self.bias_ = expectation_maximisation(
            support.features,
            support.text_classifier,
            float(logit_scale),
            self.alpha,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        zero_shot = zero_shot_logits(features, self.text_classifier_, self.logit_scale_)
        return ZeroShotEnsemble(self.alpha)(zero_shot, torch.addmm(self.bias_, features, self.weight_.T))
