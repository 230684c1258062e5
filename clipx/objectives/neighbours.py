"""Nearest neighbours among earlier captions, as further captions of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.errors import ClipxError
from clipx.models.clip import CLIP
from clipx.objectives.multi_view import check_views
from clipx.training.distributed import check_equal_rows, gather_rows, world
from clipx.training.encoded import Encoded

NEVER = -1
"""When a row was put in that is there from the start."""


class NeighbourQueue(nn.Module):
    """The newest rows, in the order in which they came, to look for neighbours in; saved and resumed.

    It starts with random directions. What comes at its end and finds no room is left out, and the next begins
    at the front: every row was there as long as any other.

    Args:
        size: rows, 1 or more.
        width: of a row.

    Raises:
        ClipxError: ``size`` below 1.

    Source: He et al. 2020 (MoCo), algorithm 1; Dwibedi et al. 2021 (NNCLR), section 3.2.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ClipxError(f"size is {size}, must be 1 or more", hint="65536 in DeCLIP")
        self.rows: Tensor
        self.written: Tensor
        self.place: Tensor
        self.clock: Tensor
        self.register_buffer("rows", functional.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("written", torch.full((size,), NEVER))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, queries: Tensor) -> Tensor:
        """Where the row is that has the largest cosine with each query ``[B, D]``: int64 ``[B]``."""
        return (queries.to(self.rows.dtype) @ self.rows.T).argmax(-1)

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Put in unit rows ``[M, D]``, the same in every process, in the place of the oldest."""
        place = int(self.place)
        count = min(len(rows), len(self.rows) - place)
        self.rows[place : place + count] = rows[:count].to(self.rows.dtype)
        self.written[place : place + count] = self.clock
        self.place.fill_((place + count) % len(self.rows))

    def ages(self, found: Tensor) -> Tensor:
        """How many ticks of the clock ago rows were put in, int64 ``[B]``; ``NEVER`` for random ones."""
        written = self.written[found]
        return torch.where(written == NEVER, NEVER, self.clock - written)


def image_to_neighbours(
    images: Sequence[Tensor], neighbours: Sequence[Tensor], logit_scale: Tensor | float
) -> Tensor:
    """The mean cross-entropy with which views of images pick the neighbours of their captions. Collective.

    Only images pick, for a caption's neighbour is no view of it that should find the image. The mean over
    processes has the value and the gradient of one process with all rows.

    Args:
        images: views ``[B, D]``, unit rows.
        neighbours: ``[B, D]`` unit rows, row i that of a caption of image i; they get no gradient.
        logit_scale: the inverse temperature, > 0.

    Returns:
        a scalar, 0 or more.

    Raises:
        ClipxError: processes hold batches of different size.

    Source: Li et al. 2022 (DeCLIP), section 3.2.3.
    """
    check_equal_rows(images[0])
    candidates = [gather_rows(each.detach(), with_grad=False) for each in neighbours]
    wanted = world()[0] * len(images[0]) + torch.arange(len(images[0]), device=images[0].device)
    losses = [
        functional.cross_entropy(logit_scale * image @ each.T, wanted)
        for image in images
        for each in candidates
    ]
    return torch.stack(losses).mean()


class NearestNeighbours(nn.Module):
    """An image's caption may be another that says much the same: the nearest one of the past.

    The queue holds the captions of all processes, alike in every process. A batch looks for its neighbours
    before it joins the queue, or each caption would find itself. Besides its loss it notes how old the
    neighbours are that it found (``nn_age``, batches) and which share of them are captions, not the random
    directions of the start (``nn_known``).

    Args:
        clip: whose embeddings the queue holds.
        images: fields of images.
        texts: fields of captions, ``masked_text`` for what ``MaskedLanguage`` makes of them; all are put in,
            the last first.
        size: captions that the queue holds.
        warmup: batches that only fill the queue.

    Raises:
        ClipxError: no fields, or others, or ``size`` below 1.

    Source: Li et al. 2022 (DeCLIP), section 3.2.3. There each process has a queue of its own captions, which
        is not saved.
    """

    pooled = True

    def __init__(
        self,
        clip: CLIP,
        images: Sequence[str] = ("image_view_1", "image_view_2"),
        texts: Sequence[str] = ("text_view_1", "text_view_2"),
        size: int = 65536,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        check_views(images, texts)
        self.images, self.texts = tuple(images), tuple(texts)
        self.needs = (*self.images, *self.texts)
        self.queue = NeighbourQueue(size, int(clip.model_cfg["embed_dim"]))
        self.warmup = warmup

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        """``{"nn": loss}`` of an encoded batch, which then joins the queue if this module trains.

        Raises:
            ClipxError: processes hold batches of different size.
        """
        images = [encoded.image(field) for field in self.images]
        texts = [encoded.text(field).detach() for field in self.texts]
        found = [self.queue.nearest(text) for text in texts]
        neighbours = [self.queue.rows[places].to(images[0].dtype) for places in found]
        loss = image_to_neighbours(images, neighbours, encoded.logit_scale)
        ages = torch.stack([self.queue.ages(places) for places in found])
        known = ages != NEVER
        encoded.note("nn_known", known.float().mean())
        encoded.note("nn_age", ages.where(known, 0).sum() / known.sum().clamp(min=1))
        counts = self.queue.clock >= self.warmup
        if self.training:
            for text in reversed(texts):
                self.queue.push(gather_rows(text, with_grad=False))
            self.queue.clock += 1
        return {"nn": loss * counts}
