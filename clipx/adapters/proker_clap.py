"""ProKeR over CLAP: the kernel correction of prototypes that are trained with it in place."""

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
from clipx.adapters.clap import check_training, class_strengths, train_prototypes
from clipx.adapters.kernels import exp_cos
from clipx.adapters.proker import ProKeR, check_rows_of_kernel, coefficients
from clipx.adapters.views import VIEWS, keys_of
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits, zero_shot_of


class ProKeRCLAP:
    """Prototypes learnt near the texts, and what they leave unexplained, from the kernel of the shots.

    Logits are ``s (f.P + k(f, X) (K / lam + I)^-1 (Y - X.P))`` with unit prototypes P that start at the
    texts; the residual is followed as P moves, without a gradient of its own. The kernel's beta and lam are
    those that suit ProKeR with the texts, found on validation before anything is trained.

    Args:
        beta, lam, search, beta_grid, lam_grid, views, max_rows: as ``ProKeR`` of the form ``code``; the
            kernel is exact.
        lr, weight_decay, steps, batch_size, warm_up, seed: as ``CLAPHead``; with ``steps`` 0 the prediction
            is ProKeR's.

    Raises:
        ClipxError: a number out of range.

    Source: Bendou et al. 2025, section 4, "ProKeR + CLAP", whose beta, lam and training were tuned on
        ImageNet for each number of shots.
    """

    needs = "features"

    keys_: Tensor
    coefficients_: Tensor
    prototypes_: Tensor
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
        views: str = "keep",
        max_rows: int = 20_000,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        steps: int = 2000,
        batch_size: int = 64,
        warm_up: int = 50,
        seed: int = 0,
    ) -> None:
        check_number("beta", beta, open_below=True)
        check_number("lam", lam, open_below=True)
        check_spread("beta_grid", beta_grid)
        check_spread("lam_grid", lam_grid)
        check_choice("views", views, VIEWS)
        check_number("max_rows", max_rows, least=1)
        check_training(lr, weight_decay, steps, batch_size, warm_up)
        self.beta, self.lam, self.search = beta, lam, search
        self.beta_grid, self.lam_grid = beta_grid, lam_grid
        self.views, self.max_rows = views, max_rows
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
        """Choose beta and lam on validation, then train the prototypes.

        Raises:
            ClipxError: see ``checks.checked``; a class without a shot; more rows than an exact kernel can
                have.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        shots_per_class(support, missing="error")
        keys, truth = keys_of(support.features, support.labels, support.groups, self.views)
        check_rows_of_kernel(
            len(keys), self.max_rows, "adapter.views=average makes one row of an image's views"
        )
        start = ProKeR(
            self.beta, self.lam, self.search, self.beta_grid, self.lam_grid, max_rows=self.max_rows
        )
        text, scale = support.text_classifier, float(logit_scale)
        start.fit(keys, truth, text, logit_scale=scale, validation=support.validation)
        self.beta_, self.lam_ = start.beta_, start.lam_

        wide = keys.double()
        kernel = exp_cos(wide @ wide.T, self.beta_)
        wanted = functional.one_hot(truth, support.classes).to(wide)
        # K (K / lam + I)^-1 (Y - X P^T) is linear in P: both of its parts once, not at every step.
        of_labels, of_keys = (
            (kernel @ coefficients(kernel, part, self.lam_)).to(keys) for part in (wanted, wide)
        )

        def correction(prototypes: Tensor, rows: Tensor) -> Tensor:
            return of_labels[rows] - of_keys[rows] @ prototypes.T

        trained = train_prototypes(
            keys,
            truth,
            text,
            class_strengths(zero_shot_logits(keys, text, scale), truth),
            scale,
            correction,
            lr=self.lr,
            weight_decay=self.weight_decay,
            steps=self.steps,
            batch_size=self.batch_size,
            warm_up=self.warm_up,
            seed=self.seed,
        )
        self.prototypes_ = functional.normalize(trained, dim=-1)
        residual = wanted - wide @ self.prototypes_.double().T
        self.keys_, self.coefficients_ = keys, coefficients(kernel, residual, self.lam_).to(keys)
        self.text_classifier_, self.logit_scale_ = text, scale
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        features = check_queries(features, self.prototypes_)
        kernel = exp_cos(features @ self.keys_.T, self.beta_)
        return self.logit_scale_ * torch.addmm(features @ self.prototypes_.T, kernel, self.coefficients_)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: they have neither prototype nor shot."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)
