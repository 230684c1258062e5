"""What the tests of prompt learners share: the shipped text tower in float64, and a task a context can solve.

Images are drawn around what the tower makes of words it knows; the classes are called by words it does not.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from clipx.adapters.prompt_learning import named_generator
from clipx.models.loading import load

COLOURS = {"purple": "violet", "red": "red", "cyan": "turquoise"}
SHAPES = {"ring": "hoop", "crescent": "moon", "circle": "circle"}
NAMES = [f"{colour} {shape}" for colour in COLOURS.values() for shape in SHAPES.values()]
SCALE = 22.0


@functools.cache
def clip():
    return load("tiny", "tiny").eval().double()


def zero_shot(names, template="a photo of a {}."):
    """The zero-shot classifier in float64, of a single template."""
    with torch.no_grad():
        features = clip().model.encode_text(clip().tokenize([template.replace("{}", name) for name in names]))
    return functional.normalize(features, dim=-1)


@functools.cache
def task(shots=2, seed=0, noise=0.8):
    """Features, labels, classifier, and features and labels of 6 queries a class: unit rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    centres = zero_shot([f"{colour} {shape}" for colour in COLOURS for shape in SHAPES])

    def rows(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(NAMES)).repeat_interleave(n)
        drawn = torch.randn(len(labels), centres.shape[1], generator=generator, dtype=torch.float64)
        away = noise * functional.normalize(drawn, dim=-1)
        return functional.normalize(centres[labels] + away, dim=-1), labels

    return *rows(shots), zero_shot(NAMES), *rows(6)


def fitted(adapter, **given):
    """The adapter fitted on the task, or on what is given in its place."""
    features, labels, text, _, _ = task()
    given = {"features": features, "labels": labels, "text_classifier": text, **given}
    return adapter.fit(**{"logit_scale": SCALE, "clip": clip(), "class_names": NAMES, **given})


def accuracy(logits, labels):
    return float((logits.argmax(1) == labels).double().mean())


def encoded_as_published(vectors, names):
    """Unit class rows ``[C, D]`` of context vectors ``[M, W]``, as CoOp's code has it: whole texts, end."""
    model = clip().model
    count = len(vectors)
    tokens = clip().tokenize([" ".join(["X"] * count) + f" {name}." for name in names])
    embedded = model.token_embedding(tokens).detach()
    context = vectors.expand(len(names), -1, -1)
    hidden = torch.cat([embedded[:, :1], context, embedded[:, 1 + count :]], dim=1)
    hidden = model.transformer(hidden + model.positional_embedding.detach(), attn_mask=model.attn_mask)
    ends = model.ln_final(hidden)[torch.arange(len(names)), tokens.argmax(1)]
    return functional.normalize(ends @ model.text_projection.detach(), dim=-1)


def published_steps(count, epochs, batch_size, seed):
    """Epoch, learning rate and rows of every step of CoOp's loop, in the order that the adapters draw."""
    generator = named_generator(seed, "order")
    for epoch in range(epochs):
        rate = 1e-5 if epoch == 0 else 2e-3 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        order = torch.randperm(count, generator=generator)
        for first in range(0, count - batch_size + 1, batch_size):
            yield rate, order[first : first + batch_size]
