"""Local regression on the shots: a constant (Nadaraya and Watson) or a plane fitted around every query."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    Support,
    check_choice,
    check_fitted,
    check_number,
    check_queries,
    check_spread,
    checked,
    shots_per_class,
)
from clipx.adapters.search import ZeroShotEnsemble, first_best, spread
from clipx.adapters.views import VIEWS, keys_of
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits, zero_shot_of
from clipx.errors import ClipxError

_ENTRIES_AT_ONCE = 2**22
"""Numbers that stand in memory at a time for the queries of a part."""


def constant_weights(queries: Tensor, keys: Tensor, beta: float) -> Tensor:
    """What every key weighs, ``[M, N]``, in the answer to a query: the kernel divided by its sum.

    It is the constant that fits the keys' values best around the query, ``min_a sum_i k_i |y_i - a|^2``.

    Args:
        queries: ``[M, D]`` unit rows.
        keys: ``[N, D]`` unit rows.
        beta: sharpness of the kernel ``exp(-beta (1 - q.k))``, 0 or more.

    Source: Nadaraya 1964; Watson 1964; Bendou et al. 2025, section 3.
    """
    # The softmax is the normalised kernel; it does not underflow where every key is far.
    return (queries @ keys.T * beta).softmax(-1)


def plane_weights(queries: Tensor, keys: Tensor, beta: float, ridges: Sequence[float]) -> Tensor:
    """What every key weighs, ``[R, M, N]``, where a plane is fitted around the query instead, at each ridge.

    The plane minimises ``sum_i w_i |y_i - a - B (k_i - q)|^2 + ridge |B|^2`` with the ``constant_weights`` w.
    At the query it is ``a``, linear in the values y. Rows sum to 1 and may have negative entries. As ``a`` is
    not penalised, a large ridge comes to the constant.

    Args:
        queries: ``[M, D]`` unit rows.
        keys: ``[N, D]`` unit rows.
        beta: see ``constant_weights``.
        ridges: R of them, above 0, in the unit of the features' variance.

    Source: Bendou et al. 2025, section 3, which does not tell the ridge; Hastie et al. 2009, section 6.3.
    """
    weights = constant_weights(queries, keys, beta)
    middle = weights @ keys
    # Spread about the weighted mean: the normal equations once the constant is eliminated.
    spreads = (weights[:, None] * keys.T) @ keys - middle[:, :, None] * middle[:, None]
    identity = torch.eye(keys.shape[1]).to(keys)
    away = (queries - middle)[:, :, None]
    found = []
    for ridge in ridges:
        slope = torch.cholesky_solve(away, torch.linalg.cholesky(spreads + ridge * identity))[:, :, 0]
        found.append(weights * (1 + slope @ keys.T - (slope * middle).sum(1, keepdim=True)))
    return torch.stack(found)


def constant_answers(queries: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """The estimate of Nadaraya and Watson, ``[M, C]``, of values ``[N, C]``; see ``constant_weights``."""
    parts = queries.split(max(1, _ENTRIES_AT_ONCE // len(keys)))
    return torch.cat([constant_weights(part, keys, beta) @ values for part in parts])


def plane_answers(
    queries: Tensor, keys: Tensor, values: Tensor, beta: float, ridges: Sequence[float]
) -> Tensor:
    """Local linear regression, ``[R, M, C]``, of values ``[N, C]``; see ``plane_weights``."""
    dims = keys.shape[1]
    parts = queries.split(max(1, _ENTRIES_AT_ONCE // (dims * max(dims, len(keys)))))
    return torch.cat([plane_weights(part, keys, beta, ridges) @ values for part in parts], 1)


class NadarayaWatson:
    """The kernel average of the shots' labels added to zero-shot: ``s f.t + alpha (k Y) / (k 1)``.

    Tip-Adapter's cache, divided by the sum of its weights.

    Args:
        alpha: weight of the average where there is no validation, 0 or more.
        beta: sharpness of the kernel there, above 0.
        search: choose both on validation, where there is one: beta outside, alpha inside, first best wins.
        alpha_grid: first, last and number of equally spaced values, both ends included.
        beta_grid: the same of beta.
        views: ``keep`` each view as a row of its own, or ``average`` those of an image.

    Raises:
        ClipxError: a number out of range.

    Source: Bendou et al. 2025, section 3.
    """

    needs = "features"

    keys_: Tensor
    values_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    alpha_: float
    beta_: float

    def __init__(
        self,
        alpha: float = 10.0,
        beta: float = 5.5,
        search: bool = True,
        alpha_grid: Sequence[float] = (1.0, 100.0, 20),
        beta_grid: Sequence[float] = (1.0, 50.0, 50),
        views: str = "keep",
    ) -> None:
        _check(alpha, beta, alpha_grid, beta_grid, views)
        self.alpha, self.beta, self.search = alpha, beta, search
        self.alpha_grid, self.beta_grid, self.views = alpha_grid, beta_grid, views

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
        """Keep the shots, with alpha and beta chosen on validation.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        self.keys_, self.values_ = _kept(support, self.views)
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        if self.search and support.validation is not None:
            rows, truth = support.validation
            alphas, betas = spread(self.alpha_grid), spread(self.beta_grid)
            corrections = (constant_answers(rows, self.keys_, self.values_, beta) for beta in betas)
            zero_shot = zero_shot_logits(rows, self.text_classifier_, self.logit_scale_)
            best = first_best(ZeroShotEnsemble.grid(zero_shot, corrections, truth, alphas), len(truth))
            if best is not None:
                self.beta_, self.alpha_ = betas[best.place[0]], alphas[best.place[1]]
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        zero_shot = zero_shot_logits(features, self.text_classifier_, self.logit_scale_)
        average = constant_answers(features, self.keys_, self.values_, self.beta_)
        return ZeroShotEnsemble(self.alpha_)(zero_shot, average)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: no shot is of them."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


class LocalLinear:
    """Local linear regression of the shots' labels added to zero-shot: ``s f.t + alpha a(f)``.

    Around every query a plane is fitted to the labels, which takes away the bias of an average where the
    shots lie to one side. It costs a system of D equations a query.

    Args:
        alpha: weight of the answer where there is no validation, 0 or more.
        beta: sharpness of the kernel there, above 0.
        ridge: penalty of the plane's slope there, above 0, see ``plane_weights``.
        search: choose the three on validation, where there is one: beta outside, then ridge, alpha inside.
        alpha_grid: first, last and number of equally spaced values, both ends included.
        beta_grid: the same of beta.
        ridges: values of the ridge.
        views: ``keep`` each view as a row of its own, or ``average`` those of an image.

    Raises:
        ClipxError: a number out of range.

    Source: Bendou et al. 2025, section 3.
    """

    needs = "features"

    keys_: Tensor
    values_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    alpha_: float
    beta_: float
    ridge_: float

    def __init__(
        self,
        alpha: float = 10.0,
        beta: float = 5.5,
        ridge: float = 0.01,
        search: bool = True,
        alpha_grid: Sequence[float] = (1.0, 100.0, 20),
        beta_grid: Sequence[float] = (1.0, 10.0, 4),
        ridges: Sequence[float] = (0.001, 0.01, 0.1),
        views: str = "keep",
    ) -> None:
        _check(alpha, beta, alpha_grid, beta_grid, views)
        for value in (ridge, *ridges):
            check_number("ridge", value, open_below=True)
        if not len(ridges):
            raise ClipxError("ridges is empty")
        self.alpha, self.beta, self.ridge, self.search = alpha, beta, ridge, search
        self.alpha_grid, self.beta_grid, self.ridges, self.views = alpha_grid, beta_grid, ridges, views

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
        """Keep the shots, with alpha, beta and ridge chosen on validation.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        self.keys_, self.values_ = _kept(support, self.views)
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        self.alpha_, self.beta_, self.ridge_ = float(self.alpha), float(self.beta), float(self.ridge)
        if self.search and support.validation is not None:
            rows, truth = support.validation
            alphas, betas = spread(self.alpha_grid), spread(self.beta_grid)
            zero_shot = zero_shot_logits(rows, self.text_classifier_, self.logit_scale_)
            counted = []
            for beta in betas:
                corrections = plane_answers(rows, self.keys_, self.values_, beta, self.ridges)
                counted.append(ZeroShotEnsemble.grid(zero_shot, corrections, truth, alphas))
            best = first_best(torch.stack(counted), len(truth))
            if best is not None:
                place = best.place
                self.beta_, self.alpha_ = betas[place[0]], alphas[place[2]]
                self.ridge_ = float(self.ridges[place[1]])
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        zero_shot = zero_shot_logits(features, self.text_classifier_, self.logit_scale_)
        (answer,) = plane_answers(features, self.keys_, self.values_, self.beta_, [self.ridge_])
        return ZeroShotEnsemble(self.alpha_)(zero_shot, answer)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: no shot is of them."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


def _check(
    alpha: float, beta: float, alpha_grid: Sequence[float], beta_grid: Sequence[float], views: str
) -> None:
    check_number("alpha", alpha)
    check_number("beta", beta, open_below=True)
    check_spread("alpha_grid", alpha_grid)
    check_spread("beta_grid", beta_grid)
    check_choice("views", views, VIEWS)


def _kept(support: Support, views: str) -> tuple[Tensor, Tensor]:
    """Keys ``[N, D]`` and their one-hot labels ``[N, C]``."""
    shots_per_class(support, missing="warn")
    keys, labels = keys_of(support.features, support.labels, support.groups, views)
    return keys, functional.one_hot(labels, support.classes).to(keys)
