"""Tip-Adapter: the shots are a cache that a test image asks by its feature; -F trains the keys of it."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    Support,
    check_choice,
    check_fitted,
    check_number,
    check_queries,
    checked,
    shots_per_class,
)
from clipx.adapters.kernels import exp_cos
from clipx.adapters.search import ZeroShotEnsemble, first_best, hits, steps_below
from clipx.adapters.training import Task, checked_task, cross_entropies, minimise, parameter
from clipx.adapters.views import Turns, average_views, first_of_groups
from clipx.adapters.zero_shot import ZeroShot, zero_shot_logits, zero_shot_of
from clipx.errors import ClipxError

_AFFINITIES_AT_ONCE = 2**18
"""Affinities that are exponentiated at a time, few enough to stay in a processor's cache."""


def cache_logits(features: Tensor, keys: Tensor, values: Tensor, beta: float) -> Tensor:
    """What the cache answers: ``exp(-beta (1 - f.k)) V``, ``[..., M, C]``.

    Args:
        features: ``[..., M, D]`` unit rows.
        keys: ``[..., N, D]``; unit rows unless trained.
        values: ``[..., N, C]``, one-hot rows.
        beta: sharpness, 0 or more.

    Source: Zhang et al. 2022, equations 3 to 5.
    """
    return exp_cos(features @ keys.transpose(-1, -2), beta) @ values


def search_alpha_beta(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    values: Tensor,
    zero_shot: Tensor,
    betas: Sequence[float],
    alphas: Sequence[float],
) -> tuple[float, float] | None:
    """The first (alpha, beta) of the best accuracy, beta outside, alpha inside; None where all miss.

    Affinities are computed once, exponentiated once a beta, and serve all alphas; rows come in parts that fit
    the processor's cache.

    Args:
        features: ``[M, D]`` unit rows of the validation images.
        labels: int64 ``[M]``.
        keys, values: the cache, see ``cache_logits``.
        zero_shot: logits ``[M, C]``.
        betas, alphas: the grid.

    Source: Zhang et al. 2022, ``search_hp`` of the code.
    """
    counts = torch.zeros(len(betas), len(alphas), dtype=torch.int64, device=features.device)
    at_once = max(1, _AFFINITIES_AT_ONCE // len(keys))
    for rows, truth, zero in zip(
        features.split(at_once), labels.split(at_once), zero_shot.split(at_once), strict=True
    ):
        closeness = rows @ keys.T

        def corrections(closeness: Tensor = closeness) -> Iterator[Tensor]:
            return (exp_cos(closeness, beta) @ values for beta in betas)

        counts += ZeroShotEnsemble.grid(zero, corrections(), truth, alphas)
    best = first_best(counts, len(labels))
    return None if best is None else (alphas[best.place[1]], betas[best.place[0]])


class TipAdapter:
    """A training-free cache added to the zero-shot logits: ``s f.w + alpha exp(-beta (1 - f.k)) V``.

    Keys are the shots' features, the views of an image averaged before they are normalised; values their
    labels. A class without a shot keeps its zero-shot logit and is warned of.

    Args:
        alpha: weight of the cache, 0 or more; 0 is zero-shot, bit for bit.
        beta: sharpness of the kernel, 0 or more.
        search: choose both on validation, where there is one.
        alpha_scale: the end of alpha's grid, which starts at 0.1 and leaves its end out; above 0.1.
        beta_scale: the end of beta's.
        alpha_steps: points of alpha's grid.
        beta_steps: points of beta's.

    Raises:
        ClipxError: a number out of range.

    Source: Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification".
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
        alpha: float = 1.0,
        beta: float = 5.5,
        search: bool = True,
        alpha_scale: float = 10.0,
        beta_scale: float = 12.0,
        alpha_steps: int = 20,
        beta_steps: int = 200,
    ) -> None:
        check_grid(alpha, beta, alpha_scale, beta_scale, alpha_steps, beta_steps)
        self.alpha, self.beta, self.search = alpha, beta, search
        self.alpha_scale, self.beta_scale = alpha_scale, beta_scale
        self.alpha_steps, self.beta_steps = alpha_steps, beta_steps

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> Self:
        """Fill the cache, and choose alpha and beta on validation.

        Args:
            features, labels, text_classifier, logit_scale, validation, groups: see ``protocol.Adapter``.
            norms: ``[N]``, the length of each feature before it was normalised, see ``average_views``.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        support = checked(
            features, labels, text_classifier, logit_scale=logit_scale, validation=validation, groups=groups
        )
        shots_per_class(support, missing="warn")
        self.keys_, self.values_ = cache(support, norms)
        self.text_classifier_, self.logit_scale_ = support.text_classifier, float(logit_scale)
        self.alpha_, self.beta_ = chosen(self, support, self.keys_, self.values_, self.logit_scale_)
        return self

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        return cached_logits(self, features)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: the cache holds nothing of them."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


class TipAdapterF:
    """Tip-Adapter whose keys are trained, from the shots' features on, with cross-entropy.

    Features are cached, so each epoch takes the next view of every image instead of augmenting anew. The
    keys after the last epoch are kept, or those of the epoch that is best on validation; alpha and beta are
    searched with them.

    Args:
        alpha, beta, search, alpha_scale, beta_scale, alpha_steps, beta_steps: as ``TipAdapter``; training
            uses the given alpha and beta.
        epochs: 0 or more; 0 is Tip-Adapter.
        lr: AdamW's, on a cosine to 0 over all steps; above 0.
        weight_decay: 0 or more.
        eps: AdamW's. 1e-4 comes from half precision and stays, for the learning rate goes with it.
        batch_size: images a step.
        select: keys of the ``last`` epoch, or of the best on ``validation`` (the first of equals).
        seed: of the order of the images.

    Raises:
        ClipxError: a number out of range.

    Source: Zhang et al. 2022, section 3.2. The code reports the epoch that is best on test; here none can.
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
        alpha: float = 1.0,
        beta: float = 5.5,
        search: bool = True,
        alpha_scale: float = 10.0,
        beta_scale: float = 12.0,
        alpha_steps: int = 20,
        beta_steps: int = 200,
        epochs: int = 20,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        eps: float = 1e-4,
        batch_size: int = 256,
        select: str = "last",
        seed: int = 0,
    ) -> None:
        check_grid(alpha, beta, alpha_scale, beta_scale, alpha_steps, beta_steps)
        check_number("epochs", epochs)
        check_number("lr", lr, open_below=True)
        check_number("weight_decay", weight_decay)
        check_number("eps", eps, open_below=True)
        check_number("batch_size", batch_size, least=1)
        check_choice("select", select, ("last", "validation"))
        self.alpha, self.beta, self.search = alpha, beta, search
        self.alpha_scale, self.beta_scale = alpha_scale, beta_scale
        self.alpha_steps, self.beta_steps = alpha_steps, beta_steps
        self.epochs, self.lr, self.weight_decay, self.eps = epochs, lr, weight_decay, eps
        self.batch_size, self.select, self.seed = batch_size, select, seed

    def fit(
        self,
        features: Tensor,
        labels: Tensor,
        text_classifier: Tensor,
        *,
        logit_scale: float,
        validation: tuple[Tensor, Tensor] | None = None,
        groups: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> Self:
        """Fill the cache, train its keys, and choose alpha and beta on validation.

        Raises:
            ClipxError: see ``checks.checked``; ``select=validation`` without one.
        """
        task = Task(features, labels, text_classifier, logit_scale, validation, groups, norms)
        vars(self).update(self.learn([task])[0])
        return self

    def learn(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The learnt attributes of each of several tasks of the same shapes, trained at once."""
        supports = [checked_task(task) for task in tasks]
        for support in supports:
            shots_per_class(support, missing="warn")
            if self.select == "validation" and support.validation is None:
                raise ClipxError("select=validation needs validation images", hint="select=last needs none")
        caches = [cache(support, task.norms) for support, task in zip(supports, tasks, strict=True)]
        scale = float(tasks[0].logit_scale)
        values = torch.stack([value for _, value in caches])
        keys = self._train(supports, torch.stack([key for key, _ in caches]), values, scale)
        states = []
        for support, key, value in zip(supports, keys, values, strict=True):
            alpha, beta = chosen(self, support, key, value, scale)
            states.append(
                {
                    "keys_": key,
                    "values_": value,
                    "text_classifier_": support.text_classifier,
                    "logit_scale_": scale,
                    "alpha_": alpha,
                    "beta_": beta,
                }
            )
        return states

    def _train(self, supports: Sequence[Support], start: Tensor, values: Tensor, scale: float) -> Tensor:
        """Keys ``[B, G, D]`` after training; a mini-batch holds the same places of every task."""
        features = torch.stack([support.features for support in supports])
        labels = torch.stack([support.labels for support in supports])
        text = torch.stack([support.text_classifier for support in supports])
        turns = [Turns(support.groups) for support in supports]
        images = start.shape[1]
        batches = -(-images // self.batch_size)
        zero_shot = scale * features @ text.transpose(1, 2)
        generator = torch.Generator().manual_seed(self.seed)
        keys = parameter(start)
        kept, best = start.clone(), [0] * len(supports)
        places, order = torch.arange(len(supports))[:, None], torch.arange(images)
        rows = labels

        def losses(step: int) -> Tensor:
            nonlocal order, rows
            epoch, batch = divmod(step, batches)
            if batch == 0:
                order = torch.randperm(images, generator=generator).to(start.device)
                rows = torch.stack([turn(epoch) for turn in turns])
            picked = rows[:, order[batch * self.batch_size : (batch + 1) * self.batch_size]]
            cached = cache_logits(features[places, picked], keys, values, self.beta)
            return cross_entropies(zero_shot[places, picked] + self.alpha * cached, labels[places, picked])

        def keep_best(step: int) -> None:
            if (step + 1) % batches:
                return
            for place, support in enumerate(supports):
                assert support.validation is not None
                rows, truth = support.validation
                zero = zero_shot_logits(rows, support.text_classifier, scale)
                cached = cache_logits(rows, keys[place], values[place], self.beta)
                right = int(hits(zero + self.alpha * cached, truth))
                if right > best[place]:
                    best[place], kept[place] = right, keys[place]

        optimizer = torch.optim.AdamW(
            [keys], lr=self.lr, weight_decay=self.weight_decay, eps=self.eps, fused=True
        )
        select = self.select == "validation"
        minimise(losses, optimizer, self.epochs * batches, after=keep_best if select else None)
        return kept if select else keys.detach()

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        return cached_logits(self, features)

    def for_classes(self, text_classifier: Tensor) -> ZeroShot:
        """Zero-shot over other classes ``[C', D]``: the cache holds nothing of them."""
        check_fitted(self)
        return zero_shot_of(text_classifier, self.text_classifier_, self.logit_scale_)


def check_grid(
    alpha: float, beta: float, alpha_scale: float, beta_scale: float, alpha_steps: int, beta_steps: int
) -> None:
    """Check the hyperparameters both forms share.

    Raises:
        ClipxError: naming the one out of range.
    """
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_number("alpha_scale", alpha_scale, least=0.1, open_below=True)
    check_number("beta_scale", beta_scale, least=0.1, open_below=True)
    check_number("alpha_steps", alpha_steps, least=1)
    check_number("beta_steps", beta_steps, least=1)


def cache(support: Support, norms: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys ``[G, D]``, one an image, and values, their one-hot labels ``[G, C]``."""
    if norms is not None and norms.shape != support.labels.shape:
        raise ClipxError(f"norms are {list(norms.shape)}, must be one a row: {len(support.labels)}")
    keys = average_views(support.features, support.groups, norms)
    labels = first_of_groups(support.labels, support.groups)
    return keys, functional.one_hot(labels, support.classes).to(keys.dtype)


def chosen(
    adapter: TipAdapter | TipAdapterF, support: Support, keys: Tensor, values: Tensor, scale: float
) -> tuple[float, float]:
    """Alpha and beta: those searched on validation, or the given ones where there is none."""
    found = None
    if adapter.search and support.validation is not None:
        rows, truth = support.validation
        found = search_alpha_beta(
            rows,
            truth,
            keys,
            values,
            zero_shot_logits(rows, support.text_classifier, scale),
            steps_below(adapter.beta_scale, adapter.beta_steps),
            steps_below(adapter.alpha_scale, adapter.alpha_steps),
        )
    return found or (float(adapter.alpha), float(adapter.beta))


def cached_logits(adapter: TipAdapter | TipAdapterF, features: Tensor) -> Tensor:
    """Logits ``[M, C]`` of either form."""
    check_fitted(adapter)
    features = check_queries(features, adapter.text_classifier_)
    zero_shot = zero_shot_logits(features, adapter.text_classifier_, adapter.logit_scale_)
    parts = [
        cache_logits(part, adapter.keys_, adapter.values_, adapter.beta_)
        for part in features.split(max(1, _AFFINITIES_AT_ONCE // len(adapter.keys_)))
    ]
    return ZeroShotEnsemble(adapter.alpha_)(zero_shot, torch.cat(parts))
