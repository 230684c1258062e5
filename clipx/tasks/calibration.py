"""Calibration: does a probability of 0.8 come true eight times in ten?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clipx.data.fields import UNLABELLED
from clipx.errors import ClipxError
from clipx.tasks.intervals import LEVEL, Estimate, mean, resampled

BINS = 15
"""Of Guo et al. 2017 and nearly everybody since."""

Scheme = Literal["equal-width", "equal-mass"]


@dataclass(frozen=True)
class Reliability:
    """Rows in each bin of confidence, their mean confidence, the share right: ``[B]``, 0 where empty."""

    count: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(
    confidence: Tensor | ArrayLike,
    correct: Tensor | ArrayLike,
    *,
    bins: int = BINS,
    scheme: Scheme = "equal-width",
) -> Reliability:
    """The reliability diagram: confidence against accuracy in bins.

    Args:
        confidence: ``[N]`` in [0, 1].
        correct: whether each came true, bool ``[N]``.
        bins: how many.
        scheme: bins ``(0, 1/B], (1/B, 2/B], ...``, or of equally many rows each, equal confidences together.

    Raises:
        ClipxError: if there is no row, a shape or a value is wrong.
    """
    values, right = _double(confidence), _double(correct)
    if values.ndim != 1 or values.shape != right.shape or not len(values):
        raise ClipxError(f"confidence {tuple(values.shape)} and correct {tuple(right.shape)} do not match")
    if not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise ClipxError("confidences must lie in [0, 1]")
    place = _bins(values, bins, scheme)
    return _reliability(values, right, place, bins, torch.ones_like(values))


def _bins(values: Tensor, bins: int, scheme: Scheme) -> Tensor:
    if scheme == "equal-width":
        return ((values * bins).ceil().long() - 1).clamp(0, bins - 1)
    edges = values.sort().values[torch.arange(1, bins, device=values.device) * len(values) // bins]
    return torch.searchsorted(edges, values.contiguous(), right=True)


def _reliability(values: Tensor, right: Tensor, place: Tensor, bins: int, weights: Tensor) -> Reliability:
    count, confidence, accuracy = (
        torch.zeros(bins, dtype=torch.float64, device=values.device).index_add(0, place, each * weights)
        for each in (torch.ones_like(values), values, right)
    )
    members = count.clamp(min=1)
    return Reliability(count, confidence / members, accuracy / members)


def expected_error(bins: Reliability) -> float:
    """Expected calibration error, in [0, 1]: the gaps of the bins, weighted by their rows.

    Source: Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017, equation 3.
    """
    return float((bins.count * (bins.confidence - bins.accuracy).abs()).sum() / bins.count.sum())


def maximum_error(bins: Reliability) -> float:
    """Maximum calibration error, in [0, 1]: the widest gap of a bin with rows (Guo et al. 2017, eq. 5)."""
    return float((bins.confidence - bins.accuracy).abs()[bins.count > 0].max())


def classwise_error(
    probabilities: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    *,
    bins: int = BINS,
    scheme: Scheme = "equal-width",
) -> float:
    """The calibration error of every class's own probability, averaged over the classes, in [0, 1].

    Args:
        probabilities: ``[N, C]``, rows summing to 1.
        labels: int64 ``[N]`` in [0, C).
        bins: a class.
        scheme: equal-width: static calibration error; equal-mass: adaptive calibration error.

    Source: Nixon et al. 2019, SCE and ACE; Kull et al. 2019, classwise-ECE.
    """
    rows, truth = _double(probabilities), torch.as_tensor(labels)
    errors = [
        expected_error(reliability(rows[:, place], truth == place, bins=bins, scheme=scheme))
        for place in range(rows.shape[1])
    ]
    return float(np.mean(errors))


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Brier score of every row, ``[N]`` in [0, 2]: squared distance from the true class's corner.

    Args:
        probabilities: ``[N, C]``, rows summing to 1.
        labels: int64 ``[N]`` in [0, C).

    Source: Brier 1950, the original sum over all classes.
    """
    return (probabilities - torch.nn.functional.one_hot(labels, probabilities.shape[1])).square().sum(1)


def calibration(
    logits: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    *,
    bins: int = BINS,
    seed: int = 0,
    draws: int = 200,
) -> dict[str, Estimate]:
    """ECE, its equal-mass and classwise kin, MCE, Brier score and log-likelihood, with 95% intervals.

    A finite sample's calibration error lies above the true one, and a bootstrap sample's above that by about
    as much: the intervals are turned round the value (basic bootstrap), which takes that off instead of
    doubling it. The bins stay as they were over the draws. MCE and the classwise error have no interval worth
    the name: theirs is empty.

    Args:
        logits: ``[N, C]``, scaled as they are to be used (by the logit scale).
        labels: int64 ``[N]``; rows labelled -1 are passed over.
        bins: of confidence.
        seed, draws: of the bootstrap.

    Returns:
        ``ece``, ``adaptive_ece`` (equal-mass), ``classwise_ece``, ``mce``, ``brier`` in [0, 2], and ``nll``
        in nats.

    Raises:
        ClipxError: if shapes do not match, no row is labelled, a label lies outside or a logit is NaN.
    """
    scores, truth = _labelled(logits, labels)
    log_probabilities = scores.log_softmax(1)
    probabilities = log_probabilities.exp()
    confidence, predicted = probabilities.max(1)
    right = (predicted == truth).double()
    estimates = {}
    schemes: dict[str, Scheme] = {"ece": "equal-width", "adaptive_ece": "equal-mass"}
    for name, scheme in schemes.items():
        place = _bins(confidence, bins, scheme)

        def measure(weights: NDArray[np.float64], place: Tensor = place) -> float:
            drawn = torch.from_numpy(weights).to(confidence.device)
            return expected_error(_reliability(confidence, right, place, bins, drawn))

        value = measure(np.ones(len(truth)))
        estimates[name] = _basic(value, resampled(measure, len(truth), seed=seed, draws=draws))
    classwise = classwise_error(probabilities, truth, bins=bins)
    worst = maximum_error(reliability(confidence, right, bins=bins))
    estimates["classwise_ece"] = Estimate(classwise, classwise, classwise)
    estimates["mce"] = Estimate(worst, worst, worst)
    estimates["brier"] = mean(brier(probabilities, truth).cpu().numpy(), seed=seed)
    nll = torch.nn.functional.nll_loss(log_probabilities, truth, reduction="none")
    estimates["nll"] = mean(nll.cpu().numpy(), seed=seed)
    return estimates


def _basic(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, max(0.0, min(value, 2 * value - float(high))), max(value, 2 * value - float(low)))


def temperature(logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> float:
    """The T > 0 for which ``softmax(logits / T)`` has the least negative log-likelihood.

    The likelihood is convex in 1/T, so the zero of its derivative is found by bisection. Where every row is
    right the likelihood grows without end as T falls, where the logits are worse than nothing as it rises:
    then the end of the range [1e-3, 1e3] comes back.

    Args:
        logits: of the validation rows, ``[N, C]``.
        labels: int64 ``[N]``; rows labelled -1 are passed over.

    Raises:
        ClipxError: as ``calibration``.

    Source: Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import brentq

    scores, truth = _labelled(logits, labels)
    own = scores.gather(1, truth[:, None])[:, 0]

    def slope(log_inverse: float) -> float:
        expected = ((scores * float(np.exp(log_inverse))).softmax(1) * scores).sum(1)
        return float((expected - own).mean())

    low, high = np.log(1e-3), np.log(1e3)
    if slope(high) <= 0:
        return 1e-3
    if slope(low) >= 0:
        return 1e3
    return float(np.exp(-brentq(slope, low, high, xtol=1e-10)))


def _labelled(logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> tuple[Tensor, Tensor]:
    scores, truth = _double(logits), torch.as_tensor(labels)
    truth = truth.to(scores.device).long()
    if scores.ndim != 2 or truth.ndim != 1 or len(scores) != len(truth):
        raise ClipxError(f"logits {tuple(scores.shape)} and labels {tuple(truth.shape)} do not match")
    scores, truth = scores[truth != UNLABELLED], truth[truth != UNLABELLED]
    if not len(truth):
        raise ClipxError("no row has a label: there is no calibration to measure")
    if int(truth.min()) < 0 or int(truth.max()) >= scores.shape[1]:
        raise ClipxError(f"labels must lie in [0, {scores.shape[1]}) or be -1")
    if scores.isnan().any():
        raise ClipxError("logits hold NaN")
    return scores, truth


def _double(values: Tensor | ArrayLike) -> Tensor:
    return torch.as_tensor(values).detach().double()
