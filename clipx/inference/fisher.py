"""How much the answers of a model depend on each of its weights: diagonal Fisher information."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clipx.data.loading import evaluation_loader, is_stream
from clipx.errors import ClipxError
from clipx.features.selection import evenly
from clipx.inference.before_after import Head
from clipx.inference.zero_shot import prompt_tokens
from clipx.models.clip import CLIP
from clipx.training.encoded import Encoded


def diagonal_fisher(
    parameters: Mapping[str, Tensor], answers: Iterable[Tensor], *, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of ``log p(y | x)``, y drawn from ``p(. | x)``.

    Drawn from the model, not the label of x: with labels it would be the empirical Fisher, which vanishes
    where a model is right.

    Args:
        parameters: name -> leaf that requires a gradient.
        answers: logits ``[C]`` of one sample each, with their graph; none outlives its turn.
        generator: of the draws, on the CPU.

    Returns:
        name -> its information, 0 or more; without the parameters that no answer depends on.

    Raises:
        ClipxError: there is no sample.

    Source: Matena and Raffel 2022, equation 2, as WiSE-FT's code takes it: single samples.
    """
    found: dict[str, Tensor] = {}
    count = 0
    for logits in answers:
        log_shares = logits.log_softmax(-1)
        drawn = int(torch.multinomial(log_shares.detach().exp().cpu(), 1, generator=generator))
        # Prompts are embedded once: their graph is every sample's.
        gradients = torch.autograd.grad(
            log_shares[drawn], list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                found[name] = found.get(name, 0.0) + gradient.square()
        count += 1
    if not count:
        raise ClipxError("there is no sample to take Fisher information of")
    return {name: total / count for name, total in found.items()}


def fisher_of(
    clip: CLIP,
    head: Head | None,
    source: Any,
    *,
    templates: Sequence[str],
    samples: int,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The diagonal Fisher information of a classifier on images as they are evaluated.

    Args:
        clip: the model; batch norm keeps its statistics.
        head: over the classes of the source; None for its prompts, through which the text tower counts too.
            All are in memory with their activations, and every sample goes back through them.
        source: of the images, and of the classes; labels are not looked at.
        templates: prompts with one ``{}``.
        samples: images, evenly spread (of a stream: the first).
        workers: loader processes; None chooses.
        seed: of the draws.

    Returns:
        By the names of ``state_of``; without what no answer depends on, as the text tower under a head.

    Raises:
        ClipxError: no class, or no image that can be used.
    """
    parameters = {f"clip.{name}": value for name, value in clip.named_parameters()}
    if head is not None:
        parameters |= {f"head.{name}": value for name, value in head.module.named_parameters()}
    learnt = {name: value.requires_grad for name, value in parameters.items()}
    training = clip.training
    clip.eval()
    for value in parameters.values():
        value.requires_grad_()
    try:
        images = _images(clip, source, samples, workers)
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            answers = _answers(clip, head, images, source.classes or [], templates)
            return diagonal_fisher(parameters, answers, generator=generator)
    finally:
        for name, value in parameters.items():
            value.requires_grad_(learnt[name])
        clip.train(training)


def _answers(
    clip: CLIP, head: Head | None, images: Iterable[Tensor], classes: Sequence[str], templates: Sequence[str]
) -> Iterator[Tensor]:
    text = _classifier(clip, classes, templates) if head is None else None
    for image in images:
        encoded = Encoded(clip, {"image": image.to(clip.device)})
        if head is None:
            assert text is not None
            yield clip.score(encoded.image(), text)[0]
        else:
            yield head.module(encoded.patches() if head.pool == "patches" else encoded.image())[0]


def _classifier(clip: CLIP, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class rows ``[C, F]`` as ``zero_shot_classifier`` gives them, with their graph."""
    tokens = prompt_tokens(clip, classes, templates).to(clip.device)
    rows = clip.encode_text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    return clip.comparison.mean_of_texts(rows)


def _images(clip: CLIP, source: Any, samples: int, workers: int | None) -> Iterator[Tensor]:
    """Single images uint8 ``[1, 3, H, W]``."""
    chosen = source if is_stream(source) else evenly(source, samples)
    loader = evaluation_loader(chosen, clip.preprocess, batch_size=64, workers=workers, limit=samples)
    for batch in loader:
        yield from batch["image"].split(1) if len(batch["image"]) else ()
