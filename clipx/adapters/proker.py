"""ProKeR: kernel ridge regression of what zero-shot leaves unexplained, kept near zero-shot; closed form."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    check_choice,
    check_fitted,
    check_number,
    check_queries,
    check_spread,
    checked,
    shots_per_class,
)
from clipx.adapters.kernels import draw_rff, exp_cos, rff
from clipx.adapters.search import first_best, hits, spread
from clipx.adapters.views import VIEWS, keys_of
from clipx.adapters.zero_shot import ZeroShot, zero_shot_of
from clipx.errors import ClipxError

FORMS = ("code", "ridge")


def coefficients(kernel: Tensor, residual: Tensor, lam: float, form: str = "code") -> Tensor:
    """Coefficients ``[N, C]`` of the correction ``k(x, X) alpha``.

    ``ridge``: ``(K + lam I)^-1 R``, the solution of kernel ridge regression. ``code``: ``(K / lam + I)^-1
    R``, lam times as much: there lam is ridge and gain at once, and the published grids are of it.

    Args:
        kernel: ``[N, N]`` of the shots with themselves, positive semi-definite.
        residual: one-hot labels less zero-shot cosines, ``[N, C]``.
        lam: above 0.
        form: ``code`` or ``ridge``.

    Source: Bendou et al. 2025, equation 10, and ``proker.py`` of the code.
    """
    matrix = kernel + lam * torch.eye(len(kernel)).to(kernel)
    solved = torch.cholesky_solve(residual, torch.linalg.cholesky(matrix))
    return lam * solved if form == "code" else solved


def grid_hits(
    kernel: Tensor,
    residual: Tensor,
    queries: Tensor,
    zero_shot: Tensor,
    labels: Tensor,
    lams: Sequence[float],
    form: str = "code",
) -> Tensor:
    """Right answers at every lam, from one eigendecomposition: int64 ``[len(lams)]``.

    Args:
        kernel, residual, form: see ``coefficients``.
        queries: kernel ``[M, N]`` of the validation images with the shots.
        zero_shot: cosines ``[M, C]``.
        labels: int64 ``[M]``.
        lams: above 0.
    """
    values, vectors = torch.linalg.eigh(kernel)
    values = values.clamp_min(0)
    left, right = queries @ vectors, vectors.T @ residual
    counts = []
    for lam in lams:
        gains = (lam if form == "code" else 1.0) / (values + lam)
        counts.append(hits(torch.addmm(zero_shot, left, gains[:, None] * right), labels))
    return torch.stack(counts)


def check_rows_of_kernel(rows: int, most: int, hint: str) -> None:
    """Check that an exact kernel, whose cost is cubic in its rows, is not asked of more than ``most``.

    Raises:
        ClipxError: with the hint.
    """
    if rows > most:
        raise ClipxError(f"{rows} rows are too many for an exact kernel (max_rows is {most})", hint=hint)


class ProKeR:
    """Zero-shot cosines and a kernel correction learnt from the shots: ``f.t + k(f, X) alpha``.

    Logits are cosines towards one-hot labels, not scaled by the model's temperature.

    Args:
        beta: sharpness of the kernel ``exp(-beta (1 - cos))`` where there is no validation; above 0.
        lam: ridge there; above 0.
        search: choose both on validation, where there is one: beta outside, lam inside, first best wins.
        beta_grid: first, last and number of equally spaced values, both ends included.
        lam_grid: the same of lam.
        form: ``code`` or ``ridge``, see ``coefficients``.
        views: ``keep`` each view as a row of its own, or ``average`` those of an image.
        random_features: 0 for the exact kernel, whose cost is cubic in the rows; else so many random Fourier
            features in its place, whose cost is cubic in them alone.
        max_rows: refuse an exact kernel of more rows.
        seed: of the random features.

    Raises:
        ClipxError: a number out of range, an unknown form.

    Source: Bendou et al. 2025, "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
        Models".
    """

    needs = "features"

    keys_: Tensor
    coefficients_: Tensor
    text_classifier_: Tensor
    logit_scale_: float
    beta_: float
    lam_: float

    def __init__(
        self,
        beta: float = 1.0,
        lam: float = 0.5,
        search: bool = True,
        beta_grid: Sequence[float] = (0.1, 10.0, 20),
        lam_grid: Sequence[float] = (0.001, 10.0, 40),
        form: str = "code",
        views: str = "keep",
        random_features: int = 0,
        max_rows: int = 20_000,
        seed: int = 0,
    ) -> None:
        check_number("beta", beta, open_below=True)
        check_number("lam", lam, open_below=True)
        check_spread("beta_grid", beta_grid)
        check_spread("lam_grid", lam_grid)
        check_choice("form", form, FORMS)
        check_choice("views", views, VIEWS)
        check_number("random_features", random_features)
        check_number("max_rows", max_rows, least=1)
        self.beta, self.lam, self.search = beta, lam, search
        self.beta_grid, self.lam_grid = beta_grid, lam_grid
        self.form, self.views = form, views
        self.random_features, self.max_rows, self.seed = random_features, max_rows, seed

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
        """Regress what zero-shot leaves unexplained, with beta and lam chosen on validation.

        Raises:
            ClipxError: see ``checks.checked``; more rows than an exact kernel can have.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        shots_per_class(support, missing="warn")
        keys, truth = keys_of(support.features, support.labels, support.groups, self.views)
        if not self.random_features:
            check_rows_of_kernel(
                len(keys),
                self.max_rows,
                "adapter.views=average makes one row of an image's views; adapter.random_features=4096 "
                "approximates the kernel",
            )
        dtype = keys.dtype
        # Near lam = 0 the gain 1 / lam magnifies every rounding error.
        keys, text = keys.double(), support.text_classifier.double()
        residual = functional.one_hot(truth, len(text)).double() - keys @ text.T
        self.beta_, self.lam_ = float(self.beta), float(self.lam)
        if self.search and support.validation is not None:
            rows, answers = support.validation
            self.beta_, self.lam_ = self._searched(keys, residual, text, rows.double(), answers)
        if self.random_features:
            mapped = self._mapped(keys, self.beta_)
            solution = coefficients(mapped.T @ mapped, mapped.T @ residual, self.lam_, self.form)
            keys = keys[:0]
        else:
            solution = coefficients(exp_cos(keys @ keys.T, self.beta_), residual, self.lam_, self.form)
        self.keys_, self.coefficients_ = keys.to(dtype), solution.to(dtype)
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        return self

    def _mapped(self, rows: Tensor, beta: float) -> Tensor:
        return rff(rows, *draw_rff(rows.shape[1], self.random_features, beta=beta, seed=self.seed, like=rows))

    def _searched(
        self, keys: Tensor, residual: Tensor, text: Tensor, rows: Tensor, answers: Tensor
    ) -> tuple[float, float]:
        betas, lams = spread(self.beta_grid), spread(self.lam_grid)
        zero_shot, own, others = rows @ text.T, keys @ keys.T, rows @ keys.T
        counts = []
        for beta in betas:
            if self.random_features:
                mapped, queries = self._mapped(keys, beta), self._mapped(rows, beta)
                kernel, target = mapped.T @ mapped, mapped.T @ residual
            else:
                kernel, queries, target = exp_cos(own, beta), exp_cos(others, beta), residual
            counts.append(grid_hits(kernel, target, queries, zero_shot, answers, lams, self.form))
        best = first_best(torch.stack(counts), len(answers))
        return (self.beta, self.lam) if best is None else (betas[best.place[0]], lams[best.place[1]])

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.text_classifier_)
        if self.random_features:
            kernel = self._mapped(features, self.beta_)
        else:
            kernel = exp_cos(features @ self.keys_.T, self.beta_)
        return torch.addmm(features @ self.text_classifier_.T, kernel, self.coefficients_)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: the correction has no column for them.

        Its logits are scaled by the model's temperature, those of this adapter are not: they cannot be put
        side by side.
        """
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)
