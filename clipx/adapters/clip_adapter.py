"""CLIP-Adapter: a small bottleneck on the features, blended with them, trained against the frozen texts."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.checks import (
    check_choice,
    check_fitted,
    check_number,
    check_queries,
    shots_per_class,
)
from clipx.adapters.protocol import copy, learnt
from clipx.adapters.search import first_best, hits
from clipx.adapters.training import Task, checked_task, cross_entropies, half_cosine, minimise, parameter
from clipx.adapters.views import Turns, first_of_groups
from clipx.errors import ClipxError

SIDES = ("image", "text", "both")
OPTIMIZERS = ("sgd", "adam")
RATES: dict[str, Callable[[int, int], float]] = {
    "cosine": half_cosine,
    "constant": lambda step, steps: 1.0,
}


def bottleneck(rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """``relu(up relu(down v))``, ``[..., N, D]``, 0 or more: the last ReLU is part of the method.

    Args:
        rows: ``[..., N, D]``.
        down: ``[..., H, D]``.
        up: ``[..., D, H]``.

    Source: Gao et al. 2023, equation 4.
    """
    return (rows @ down.transpose(-1, -2)).relu().matmul(up.transpose(-1, -2)).relu()


def blend(rows: Tensor, adapted: Tensor, adapter_weight: Tensor | float, post_norm: bool = True) -> Tensor:
    """``r A(v) + (1 - r) v``, of unit length unless ``post_norm`` is false.

    Source: Gao et al. 2023, equation 6, where r weighs the adapter; some code has it the other way round.
    """
    blended = adapter_weight * adapted + (1 - adapter_weight) * rows
    return functional.normalize(blended, dim=-1) if post_norm else blended


class CLIPAdapter:
    """A bottleneck without biases on image features, text features or both.

    The paper's enters features before they are normalised. As nothing in it has a bias, the length of a
    feature passes through to the blend, where normalisation takes it away: unit rows give the same logits.

    Args:
        adapter_weight: r, of the adapted image feature, in [0, 1]; 0 is zero-shot, bit for bit.
        text_weight: the same of the text feature.
        side: ``image``, ``text`` or ``both``: what is adapted.
        reduction: width of the features over that of the bottleneck, 1 or more.
        post_norm: normalise after blending; false is what LP++'s code does.
        search: choose the weights on validation, where there is one, among 0.1, 0.2, ... 1.0.
        optimizer: ``sgd`` with momentum 0.9, or ``adam``.
        lr: above 0.
        schedule: ``cosine`` to 0 over the steps, or ``constant``.
        eps: Adam's.
        weight_decay: 0 or more.
        epochs: 0 or more; with several views an image, each epoch takes the next.
        batch_size: images a step; 0 takes all.
        seed: of the weights at the start and the order of the images.

    Raises:
        ClipxError: a number out of range, an unknown side, optimizer or schedule.

    Source: Gao et al. 2023, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters".
    """

    needs = "features"

    text_classifier_: Tensor
    logit_scale_: float
    image_weight_: float
    text_weight_: float

    def __init__(
        self,
        adapter_weight: float = 0.2,
        text_weight: float = 0.2,
        side: str = "image",
        reduction: int = 4,
        post_norm: bool = True,
        search: bool = False,
        optimizer: str = "sgd",
        lr: float = 1e-2,
        schedule: str = "constant",
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        epochs: int = 200,
        batch_size: int = 0,
        seed: int = 0,
    ) -> None:
        check_number("adapter_weight", adapter_weight, most=1)
        check_number("text_weight", text_weight, most=1)
        check_choice("side", side, SIDES)
        check_number("reduction", reduction, least=1)
        check_choice("optimizer", optimizer, OPTIMIZERS)
        check_number("lr", lr, open_below=True)
        check_choice("schedule", schedule, tuple(RATES))
        check_number("eps", eps, open_below=True)
        check_number("weight_decay", weight_decay)
        check_number("epochs", epochs)
        check_number("batch_size", batch_size)
        self.adapter_weight, self.text_weight, self.side = adapter_weight, text_weight, side
        self.reduction, self.post_norm, self.search = reduction, post_norm, search
        self.optimizer, self.lr, self.schedule = optimizer, lr, schedule
        self.eps, self.weight_decay = eps, weight_decay
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed

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
        """Train the bottleneck with cross-entropy.

        Raises:
            ClipxError: see ``checks.checked``.
        """
        task = Task(features, labels, text_classifier, logit_scale, validation, groups)
        vars(self).update(self.learn([task])[0])
        return self

    def learn(self, tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """The learnt attributes of each of several tasks of the same shapes, trained at once.

        The weights that are searched are tasks of their own beside each other.
        """
        supports = [checked_task(task) for task in tasks]
        for support in supports:
            shots_per_class(support, missing="warn")
        searched = self.search and all(support.validation is not None for support in supports)
        ratios = [step / 10 for step in range(1, 11)] if searched else [None]
        spread = [(support, ratio) for support in supports for ratio in ratios]
        like = supports[0].features
        pairs = [self._weights(ratio) for _, ratio in spread]
        image_weight, text_weight = (
            like.new_tensor(side)[:, None, None] for side in zip(*pairs, strict=True)
        )

        features = torch.stack([support.features for support, _ in spread])
        text = torch.stack([support.text_classifier for support, _ in spread])
        labels = torch.stack([first_of_groups(support.labels, support.groups) for support, _ in spread])
        turns = [Turns(support.groups) for support, _ in spread]
        images = labels.shape[1]
        size = self.batch_size or images
        batches = -(-images // size)
        scale = float(tasks[0].logit_scale)
        generator = torch.Generator().manual_seed(self.seed)
        hidden = max(1, features.shape[2] // self.reduction)
        layers: dict[str, Tensor] = {}
        for side in ("image", "text"):
            for name, shape in (("down", (hidden, features.shape[2])), ("up", (features.shape[2], hidden))):
                start = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
                start = (start / math.sqrt(shape[1])).to(like).expand(len(spread), -1, -1)
                if self.side in (side, "both"):
                    layers[f"{side}_{name}_"] = parameter(start)
        places = torch.arange(len(spread), device=like.device)[:, None]
        order = torch.arange(images, device=like.device)
        rows = torch.stack([turn(0) for turn in turns])

        def losses(step: int) -> Tensor:
            nonlocal order, rows
            epoch, batch = divmod(step, batches)
            if batch == 0:
                rows = torch.stack([turn(epoch) for turn in turns])
                if batches > 1:
                    order = torch.randperm(images, generator=generator).to(like.device)
            part = order[batch * size : (batch + 1) * size]
            image = self._adapted(features[places, rows[:, part]], "image", layers, image_weight)
            texts = self._adapted(text, "text", layers, text_weight)
            return cross_entropies(scale * image @ texts.transpose(1, 2), labels[:, part])

        if self.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                layers.values(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
            )
        else:
            optimizer = torch.optim.Adam(
                layers.values(), lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
            )
        minimise(losses, optimizer, self.epochs * batches, rate=RATES[self.schedule])
        states: list[dict[str, Any]] = [
            {
                **{name: layer[place].detach().clone() for name, layer in layers.items()},
                "text_classifier_": support.text_classifier,
                "logit_scale_": scale,
                "image_weight_": pair[0],
                "text_weight_": pair[1],
            }
            for place, ((support, _), pair) in enumerate(zip(spread, pairs, strict=True))
        ]
        if not searched:
            return states
        chosen = []
        for place, support in enumerate(supports):
            own = states[place * len(ratios) : (place + 1) * len(ratios)]
            assert support.validation is not None
            shots, truth = support.validation
            counts = torch.stack([hits(self._logits(shots, state), truth) for state in own])
            best = first_best(counts, len(truth))
            chosen.append(own[best.place[0] if best else 0])
        return chosen

    def _weights(self, ratio: float | None) -> tuple[float, float]:
        """Weights of image and text: the given ones, or one for both; 0 of a side that is not adapted."""
        image, text = (self.adapter_weight, self.text_weight) if ratio is None else (ratio, ratio)
        return (
            float(image) if self.side != "text" else 0.0,
            float(text) if self.side != "image" else 0.0,
        )

    def _adapted(self, rows: Tensor, side: str, layers: dict[str, Any], weight: Tensor | float) -> Tensor:
        if f"{side}_down_" not in layers or (not isinstance(weight, Tensor) and weight == 0):
            return rows
        adapted = bottleneck(rows, layers[f"{side}_down_"], layers[f"{side}_up_"])
        return blend(rows, adapted, weight, self.post_norm)

    def _logits(self, features: Tensor, state: dict[str, Any]) -> Tensor:
        image = self._adapted(features, "image", state, state["image_weight_"])
        text = self._adapted(state["text_classifier_"], "text", state, state["text_weight_"])
        return state["logit_scale_"] * image @ text.T

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``[M, C]`` of unit rows ``[M, D]``."""
        check_fitted(self)
        return self._logits(check_queries(features, self.text_classifier_), vars(self))

    def for_classes(self, text_classifier: Tensor) -> "CLIPAdapter":
        """The same bottleneck before other classes ``[C', D]``, where zero-shot is often better."""
        check_fitted(self)
        if not len(text_classifier):
            raise ClipxError("there are no classes")
        other: CLIPAdapter = copy(self)
        vars(other).update(learnt(self))
        other.text_classifier_ = check_queries(text_classifier, self.text_classifier_)
        return other
