"""What the methods share that train a few numbers inside both towers: the loop, and what is kept of it."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from clipx.adapters.checks import (
    check_choice,
    check_fitted,
    check_labels,
    check_number,
    check_queries,
    checked,
)
from clipx.adapters.protocol import copy as unfitted
from clipx.adapters.protocol import learnt
from clipx.adapters.zero_shot import zero_shot_logits
from clipx.data.shots import ShotImages
from clipx.errors import ClipxError
from clipx.features.encode import PRECISIONS, Progress
from clipx.inference.zero_shot import DEFAULT_TEMPLATES, check_prompts, zero_shot_classifier
from clipx.models.clip import CLIP
from clipx.models.surgery.sites import check_selection, convolutional, restore

Change = Callable[[CLIP], Mapping[str, nn.Module]]
"""Puts what is to be trained into a model, in place, and tells what it put in, by the name of its site."""

LAST_RATE = 1e-6
"""Where the cosine of the learning rate ends, in both published codes."""

_TEXTS_AT_ONCE = 512
"""Class prompts whose activations stand in memory together; those of more are computed twice."""

_Item = TypeVar("_Item")


def published_steps(images: int, shots: int, batch_size: int, steps_per_shot: int, epochs: int | None) -> int:
    """Steps that a paper takes: so many a shot, or so many passes through the images.

    Args:
        images: N.
        shots: images a class, of the class that has most.
        batch_size: images a step; a last batch that is not full counts as a step.
        steps_per_shot: counts where ``epochs`` is None.
        epochs: passes, or None.
    """
    return steps_per_shot * shots if epochs is None else epochs * -(-images // batch_size)


def cosine_rate(step: int, period: int, lr: float, last: float = LAST_RATE) -> float:
    """The learning rate at a step: half a cosine from ``lr`` to ``last`` in ``period`` steps, then back."""
    return last + (lr - last) * (1 + math.cos(math.pi * step / period)) / 2


def check_settings(adapter: Any) -> None:
    """Check the hyperparameters that ``fit_towers`` reads of an adapter.

    Raises:
        ClipxError: naming the first that is wrong.
    """
    check_selection(adapter.towers, adapter.targets, adapter.blocks)
    check_number("steps_per_shot", adapter.steps_per_shot, least=1)
    if adapter.epochs is not None:
        check_number("epochs", adapter.epochs)
    check_number("shorten", adapter.shorten, least=1)
    check_number("lr", adapter.lr, open_below=True)
    check_number("weight_decay", adapter.weight_decay)
    check_number("batch_size", adapter.batch_size, least=1)
    check_choice("precision", adapter.precision, ("auto", *PRECISIONS))
    if adapter.template is not None:
        check_prompts(["name"], [adapter.template])


def fit_towers(
    adapter: Any,
    change: Change,
    features: Tensor,
    labels: Tensor,
    text_classifier: Tensor,
    *,
    logit_scale: float,
    validation: tuple[Tensor, Tensor] | None,
    clip: CLIP | None,
    images: ShotImages | None,
    class_names: Sequence[str],
    templates: Sequence[str],
    progress: Progress | None,
    cyclic: bool = False,
) -> dict[str, Any]:
    """Train what a change puts into a copy of a model on the shots, and say what is to be kept.

    Cross-entropy over cosines with the class prompts, of which there is one a class, embedded anew every step
    where the text tower is trained; where it is not, the given classifier stays.

    Args:
        adapter: with the hyperparameters of ``check_settings`` and a ``seed``; for the loop, see ``train``.
        change: see ``Change``.
        features, labels, text_classifier, logit_scale, validation: see ``protocol.Adapter``; features and
            validation are checked and left alone.
        clip, images, class_names, templates: see ``protocol.TrainsTowers``.
        progress: told ``("step", done, total)``.
        cyclic: the cosine has the length of the epochs, counted in steps, see ``CLIPSVD``.

    Returns:
        learnt attributes, and ``_adapted``, the model before and after.

    Raises:
        ClipxError: something missing or wrong, or training that diverged.
    """
    support = checked(features, labels, text_classifier, logit_scale=logit_scale, validation=validation)
    if clip is None or images is None or len(class_names) != support.classes:
        raise ClipxError(
            f"{type(adapter).__name__} trains the towers: it needs the model, the images and the class names",
            hint=f"fit(..., clip=..., images=ShotImages(...), class_names=[{support.classes} names])",
        )
    counts = check_labels(images.labels, len(images), support.classes, "images").bincount()
    template = adapter.template or next(iter(templates), DEFAULT_TEMPLATES[0])
    check_prompts(class_names, [template])
    published = published_steps(
        len(images), int(counts.max()), adapter.batch_size, adapter.steps_per_shot, adapter.epochs
    )
    steps = -(-published // adapter.shorten)
    if steps < published:
        warnings.warn(
            f"trained for {steps} steps instead of {published}, at {adapter.shorten} times the learning rate:"
            " adapter.shorten=1 is as published",
            stacklevel=4,
        )
    if "image" in adapter.towers and convolutional(clip) and "conv" not in adapter.targets:
        warnings.warn(
            "of the image tower only the attention pool is trained; conv in adapter.targets adds the rest",
            stacklevel=4,
        )
    own = copy.deepcopy(clip)
    texts = [template.replace("{}", name) for name in class_names] if "text" in adapter.towers else None
    devices = [own.device] if own.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(adapter.seed)
        changes = change(own)
        train(
            own,
            changes,
            images,
            support.text_classifier if texts is None else texts,
            logit_scale=float(logit_scale),
            steps=steps,
            period=adapter.epochs if cyclic else steps,
            lr=adapter.lr * adapter.shorten,
            weight_decay=adapter.weight_decay,
            batch_size=adapter.batch_size,
            precision=adapter.precision,
            progress=progress,
        )
    weights = {name: value.detach().clone() for name, value in _trained(changes).items()}
    tower = _finished(own, clip)
    classifier = support.text_classifier
    if texts is not None:
        classifier = zero_shot_classifier(tower, class_names, [template]).to(classifier)
    return {
        "weights_": weights,
        "text_classifier_": classifier,
        "logit_scale_": float(logit_scale),
        "template_": template,
        "steps_": steps,
        "_adapted": (clip, tower),
    }


def train(
    clip: CLIP,
    changes: Mapping[str, nn.Module],
    images: ShotImages,
    texts: Sequence[str] | Tensor,
    *,
    logit_scale: float,
    steps: int,
    period: int,
    lr: float,
    weight_decay: float,
    batch_size: int,
    precision: str = "auto",
    progress: Progress | None = None,
) -> None:
    """Train the changes in a model, in place, with AdamW: cross-entropy of images against texts.

    All else is frozen, and in evaluation mode: a batch norm keeps its statistics.

    Args:
        clip: the model.
        changes: modules in it, whose own parameters are trained.
        images: N of them, augmented anew every epoch.
        texts: one a class, embedded every step; or embeddings ``[C, D]``.
        logit_scale: of the cosines.
        steps: 0 or more.
        period: of the cosine of the learning rate, in steps, see ``cosine_rate``.
        lr: at the first step.
        weight_decay: of the parameters that are trained.
        batch_size: images a step.
        precision: of the towers; ``auto`` is fp16 on CUDA, as published, and fp32 elsewhere.
        progress: told ``("step", done, steps)``.

    Raises:
        ClipxError: the parameters are not finite afterwards.

    Source: Zanella and Ben Ayed 2024, section 3, and the code.
    """
    device = clip.device
    published = torch.float16 if device.type == "cuda" else torch.float32
    dtype = published if precision == "auto" else PRECISIONS[precision]
    parameters = list(_trained(changes).values())
    clip.requires_grad_(False).eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    for module in changes.values():
        module.train()
    # Convolutions run faster in channels-last; other layers do not notice.
    clip.to(memory_format=torch.channels_last)
    tokens = None if isinstance(texts, Tensor) else clip.shorten(clip.tokenize(texts)).to(device)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    endless = (batch for epoch in itertools.count() for batch in images.batches(batch_size, epoch=epoch))
    with closing(_ahead(endless)) as batches, torch.enable_grad():
        for step, (pixels, labels) in zip(range(steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = cosine_rate(step, period, lr)
            pixels = pixels.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
                rows = clip.encode_image(clip.normalize(pixels))
                classes = texts if tokens is None else _embedded(clip, tokens)
            logits = zero_shot_logits(rows, classes, logit_scale)  # type: ignore[arg-type]
            optimizer.zero_grad()
            scaler.scale(functional.cross_entropy(logits, labels.to(device))).backward()
            scaler.step(optimizer)
            scaler.update()
            if progress is not None:
                progress("step", step + 1, steps)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise ClipxError("training diverged: what was learnt is not finite", hint="a lower adapter.lr")


def adapted(adapter: Any, change: Change, clip: CLIP) -> CLIP:
    """A copy of a model with what an adapter learnt merged into plain weights; open_clip can load it.

    Args:
        adapter: fitted by ``fit_towers``.
        change: the one that it was fitted with.
        clip: the model that it was fitted on.

    Raises:
        ClipxError: not fitted, or on a model of another shape.
    """
    check_fitted(adapter)
    known = getattr(adapter, "_adapted", None)
    if known is not None and known[0] is clip:
        return known[1]
    own = copy.deepcopy(clip)
    places = _trained(change(own))
    if {name: value.shape for name, value in places.items()} != {
        name: value.shape for name, value in adapter.weights_.items()
    }:
        raise ClipxError(f"this {type(adapter).__name__} was fitted on a model of another shape")
    with torch.no_grad():
        for name, value in places.items():
            value.copy_(adapter.weights_[name])
    adapter._adapted = (clip, _finished(own, clip))
    return adapter._adapted[1]


def adapted_logits(adapter: Any, features: Tensor) -> Tensor:
    """Logits ``[M, C]`` of unit rows ``[M, D]`` of the adapted image tower."""
    check_fitted(adapter)
    features = check_queries(features, adapter.text_classifier_)
    return zero_shot_logits(features, adapter.text_classifier_, adapter.logit_scale_)


def over_classes(
    adapter: Any,
    text_classifier: Tensor,
    clip: CLIP | None,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> Any:
    """The same towers before other classes.

    Args:
        adapter: fitted by ``fit_towers``.
        text_classifier: ``[C', D]``, of the adapted text tower; used where there are no names to embed.
        clip: the model that it was fitted on, or None.
        class_names: C' of them, or none; embedded with one prompt each, as in training.
        templates: the first is that prompt, unless the adapter has its own; without any, that of training.

    Raises:
        ClipxError: not fitted, or no classes.
    """
    check_fitted(adapter)
    if not len(text_classifier):
        raise ClipxError("there are no classes")
    other = unfitted(adapter)
    vars(other).update(learnt(adapter))
    classifier = check_queries(text_classifier, adapter.text_classifier_)
    if clip is not None and len(class_names) and "text" in adapter.towers:
        other.template_ = adapter.template or next(iter(templates), adapter.template_)
        classifier = zero_shot_classifier(adapter.adapted(clip), class_names, [other.template_])
        other._adapted = adapter._adapted
    other.text_classifier_ = classifier.to(adapter.text_classifier_)
    return other


def _trained(changes: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """What is trained of the changes, by ``site.name``: their own parameters, not those of their layers."""
    return {
        f"{site}.{name}": parameter
        for site, module in changes.items()
        for name, parameter in module.named_parameters(recurse=False)
    }


def _finished(own: CLIP, like: CLIP) -> CLIP:
    """A model with changes merged, laid out and trainable as the original."""
    restore(own).to(memory_format=torch.contiguous_format)
    trainable = dict(like.named_parameters())
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(trainable[name].requires_grad)
    return own.eval()


def _embedded(clip: CLIP, tokens: Tensor) -> Tensor:
    """Unit rows ``[C, D]`` of prompts, with gradient, in memory that does not grow with C."""
    if len(tokens) <= _TEXTS_AT_ONCE:
        return clip.encode_text(tokens)
    parts = [
        checkpoint(clip.encode_text, part, use_reentrant=False)  # dropout falls alike in both passes
        for part in tokens.split(_TEXTS_AT_ONCE)
    ]
    return torch.cat(parts)


def _ahead(items: Iterator[_Item]) -> Generator[_Item]:
    """The same items, each made in a thread while the one before it is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
