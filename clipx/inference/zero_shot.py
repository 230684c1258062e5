"""Zero-shot classification (Radford et al. 2021, section 3.1.4): a class is the mean of its prompts."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clipx.errors import ClipxError
from clipx.features.encode import Embed, check_finite, embed_texts, evaluating
from clipx.models.clip import CLIP, images_to_features

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def zero_shot_classifier(
    clip: CLIP,
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Tensor:
    """One text row a class: the mean of the rows of its prompts, as the model's comparison takes means; of a
    cosine, the unit-length mean of unit rows.

    Args:
        clip: the model.
        class_names: C of them.
        templates: prompts with one ``{}`` where the name goes.
        batch_size: prompts a step.
        precision: of the text tower, ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        float32 ``[C, F]`` rows on the CPU.

    Raises:
        ClipxError: no class, a blank name, no template, or one without exactly one ``{}``.

    Source: open_clip ``build_zero_shot_classifier``.
    """
    check_prompts(class_names, templates)
    per_step = max(1, batch_size // len(templates))
    rows = []
    for first in range(0, len(class_names), per_step):
        names = class_names[first : first + per_step]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        features = embed_texts(clip, prompts, batch_size=batch_size, precision=precision)
        rows.append(clip.comparison.mean_of_texts(features.unflatten(0, (len(names), len(templates)))))
    return torch.cat(rows)


def prompt_tokens(clip: CLIP, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids int64 ``[C, T, L]`` of every class in every template, on the CPU.

    Raises:
        ClipxError: as ``check_prompts``.
    """
    check_prompts(class_names, templates)
    prompts = [template.replace("{}", str(name)) for name in class_names for template in templates]
    return clip.shorten(clip.tokenize(prompts)).unflatten(0, (len(class_names), len(templates)))


def check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Check that there are class names, and templates to put them in.

    Raises:
        ClipxError: naming what is missing or wrong.
    """
    if isinstance(class_names, str) or not class_names:
        raise ClipxError("there are no class names", hint="name them: 'labels=[cat, dog]'")
    blank = [place for place, name in enumerate(class_names) if not str(name).strip()]
    if blank:
        raise ClipxError(f"class {blank[0]} has a blank name")
    if isinstance(templates, str) or not templates:
        raise ClipxError("there are no prompt templates", hint="data.templates=['a photo of a {}.']")
    for template in templates:
        if template.count("{}") != 1:
            raise ClipxError(
                f"the prompt template {template!r} does not hold one {{}}",
                hint="{} is where the class name goes: 'a photo of a {}.'",
            )


def class_logits(
    clip: CLIP, image_features: Tensor, classifier: Tensor, *, at_once: int = 4096
) -> Iterator[tuple[slice, Tensor]]:
    """Compare images with classes, some rows at a time, as the model compares.

    Args:
        clip: the model, whose ``score`` is asked.
        image_features: rows ``[N, F]`` of images.
        classifier: rows ``[C, F]`` of texts.
        at_once: rows a step.

    Yields:
        The rows, and their logits ``[len(rows), C]``.
    """
    with evaluating(clip):
        columns = classifier.to(clip.device)
        for first in range(0, len(image_features), at_once):
            rows = slice(first, min(first + at_once, len(image_features)))
            yield rows, clip.score(image_features[rows].to(clip.device), columns).float()


def probabilities(clip: CLIP, logits: Tensor) -> Tensor:
    """Turn logits ``[N, C]`` into probabilities in [0, 1].

    A model trained with a bias judges every pair by itself (SigLIP): each label gets its own sigmoid and
    rows need not sum to one. Any other compares the labels with one another: softmax.
    """
    return logits.softmax(dim=-1) if clip.logit_bias is None else logits.sigmoid()


def classify(
    clip: CLIP,
    images: Sequence[Any],
    class_names: Sequence[str],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    *,
    batch_size: int = 64,
) -> Tensor:
    """The probability of every class for every image: ``[len(images), C]``, on the CPU.

    Args:
        clip: the model.
        images: PIL images, or uint8 arrays ``[H, W, 3]``.
        class_names: C of them.
        templates: prompts with one ``{}`` where the name goes.
        batch_size: images a step.

    Raises:
        ClipxError: no image, or what ``zero_shot_classifier`` raises.

    Example::

        clip = load("ViT-B-32", "openai")
        classify(clip, [Image.open("pet.jpg")], ["cat", "dog"])
    """
    return compare(
        clip,
        embed_images(clip, images, batch_size=batch_size),
        zero_shot_classifier(clip, class_names, templates),
    )


def compare(clip: CLIP, image_features: Tensor, classifier: Tensor) -> Tensor:
    """The probability ``[N, C]`` of every class (a row of ``[C, F]``) for every image (of ``[N, F]``)."""
    logits = [logits.cpu() for _, logits in class_logits(clip, image_features, classifier)]
    return probabilities(clip, torch.cat(logits))


def embed_images(
    clip: CLIP, images: Sequence[Any], *, batch_size: int = 64, embed: Embed = images_to_features
) -> Tensor:
    """Embed images in memory: rows float32 ``[len(images), F]`` on the CPU.

    Args:
        clip: the model.
        images: PIL images, or uint8 arrays ``[H, W, 3]``.
        batch_size: images a step.
        embed: what the tower makes of images; another than the default need not give rows.

    Raises:
        ClipxError: no image, or an embedding that is not finite.
    """
    if not len(images):
        raise ClipxError("there are no images to embed")
    features = []
    with evaluating(clip):
        for first in range(0, len(images), batch_size):
            part = [clip.preprocess(image) for image in images[first : first + batch_size]]
            features.append(embed(clip, torch.stack(part), torch.float32).cpu())
            check_finite(features[-1], "image", [f"image {first + place}" for place in range(len(part))])
    return torch.cat(features)
