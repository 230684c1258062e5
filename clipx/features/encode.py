"""Encode once: the embeddings of a source under one exact model, from the store or into it."""

import contextlib
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.errors import ClipxError, did_you_mean, kind_of
from clipx.features.projection import Projection, before_projection, image_projection
from clipx.features.selection import Selection, evenly, rest_of
from clipx.features.store import Entry, Writer, default_root, obtain
from clipx.models.clip import CLIP, images_to_features
from clipx.models.geometry import unit_rows
from clipx.models.patches import patch_mean_of_images

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECORD_SECONDS = 5.0
Progress = Callable[[str, int, int | None], None]
"""Told (bank, done, total or None) after every batch."""

BANKS = ("image", "raw", "pre_projection", "patches")
"""What is kept of an image: its row, a unit vector where the model compares by the cosine; what becomes its
row; the vector before the projection; the mean of its patches."""


Embed = Callable[[CLIP, Tensor, torch.dtype], Tensor]
"""(model, uint8 images ``[B, 3, H, W]``, precision of the tower) -> float32 ``[B, D]``."""


@torch.no_grad()
def _raw_features(clip: CLIP, images: Tensor, precision: torch.dtype) -> Tensor:
    device = clip.device
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        pixels = clip.normalize(images.to(device, non_blocking=True))
        return clip.encode_image(pixels, normalize=False).float()


TOWERS: dict[str, Embed] = {
    "image": images_to_features,
    "raw": _raw_features,
    "pre_projection": before_projection,
    "patches": patch_mean_of_images,
}


@dataclass(frozen=True)
class FeatureSet:
    """The embeddings of a split and what is known of its examples, N of them.

    ``image`` float32 ``[N, F]`` rows, as the model's comparison has them: of a cosine, unit rows; ``labels``
    int64 ``[N]`` (-1: none); ``index`` int64 ``[N]``, place in the source; ``ids`` N names; ``texts`` the T
    distinct captions, ``pairs`` int64 ``[P, 2]`` of (image, text) that belong together; ``text`` float32
    ``[T, F]`` rows, None where texts were not asked for; ``skipped`` the number of samples passed over, by
    reason; ``encoded`` whether a tower had to run; ``norms`` float32 ``[N]`` the length of every row before
    it was normalised, and ``pre`` float32 ``[N, Do]`` what the projection was given, where these banks were
    asked for; ``patches`` float32 ``[N, W]`` the means of patches, likewise, of which ``image`` has the unit
    rows then. Tensors are memory-mapped.
    """

    image: Tensor
    labels: Tensor
    index: Tensor
    ids: list[str]
    texts: list[str]
    pairs: Tensor
    text: Tensor | None
    skipped: dict[str, int]
    encoded: bool
    norms: Tensor | None = None
    pre: Tensor | None = None
    patches: Tensor | None = None
    _holders: tuple[Any, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.image)


def encode(
    clip: CLIP,
    source: Any,
    *,
    split: str,
    bank: str = "image",
    text: bool = True,
    root: Path | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    precision: str = "fp32",
    limit: int | None = None,
    record_seconds: float = RECORD_SECONDS,
    progress: Progress | None = None,
) -> FeatureSet:
    """Embed every usable item of a source, or read the embeddings that an earlier call left in the store.

    A source without a fingerprint cannot be recognised: it is encoded each time, and kept only as long as the
    result is.

    Args:
        clip: the model; its weights and preprocessing are part of the key.
        source: map-style or stream source; its fingerprint is part of the key.
        split: name of the split the source was opened with.
        bank: one of ``BANKS``.
        text: embed the captions too, where there are any.
        root: of the store; None for ``default_root()``.
        batch_size: images, and texts, a step.
        workers: loader processes; None chooses.
        precision: ``fp32``, ``bf16`` or ``fp16``, of the towers; embeddings are float32.
        limit: encode only so many items: evenly spread over a map-style source, the first of a stream.
        record_seconds: how often progress is made durable, what a kill costs at most.
        progress: told after every batch.

    Raises:
        ClipxError: no usable item, an unknown precision, embeddings that are not finite, a store that cannot
            be written.
    """
    from clipx.data.loading import is_stream

    if precision not in PRECISIONS:
        raise ClipxError(f"there is no precision {precision!r}", hint=did_you_mean(precision, PRECISIONS))
    if bank not in BANKS:
        raise ClipxError(f"there is no bank {bank!r}", hint=did_you_mean(bank, BANKS))
    if limit is not None and limit < 1:
        raise ClipxError(f"limit={limit} leaves nothing to encode")
    if limit is not None and not is_stream(source) and limit >= len(source):
        limit = None  # the same embeddings under the same key
    chosen = source if limit is None or is_stream(source) else evenly(source, limit)
    total = limit if is_stream(source) else len(chosen)
    total = getattr(source, "size", None) if total is None else total

    batches = batches_of(clip, chosen, total=total, limit=limit, batch_size=batch_size, workers=workers)
    holders: tuple[Any, ...] = ()
    model = clip.fingerprint()
    description = description_of(clip, source, split=split, bank=bank, precision=precision, limit=limit)
    if hasattr(source, "fingerprint"):
        root = root or default_root()
    else:
        scratch = tempfile.TemporaryDirectory(prefix="clipx-features-", ignore_cleanup_errors=True)
        holders, root = (scratch,), Path(scratch.name)
    images, fresh = obtain(
        root,
        description,
        lambda writer: encode_batches(
            clip,
            batches,
            writer,
            embed=TOWERS[bank],
            precision=precision,
            total=total,
            record_seconds=record_seconds,
            progress=progress,
        ),
    )
    texts, fresh_texts = None, False
    if text and images.lists.get("texts"):
        captions = images.lists["texts"]
        texts, fresh_texts = obtain(
            root,
            {"bank": "text", "model": model, "texts": _digest(captions), "precision": precision},
            lambda writer: _encode_texts(
                clip, captions, writer, batch_size, precision, record_seconds, progress
            ),
        )
    projection = image_projection(clip) if bank == "pre_projection" else None
    return _feature_set(clip, images, texts, bank, projection, fresh or fresh_texts, holders)


def description_of(
    clip: CLIP, source: Any, *, split: str, bank: str, precision: str, limit: int | None
) -> dict[str, Any]:
    """What the embeddings of the images of a source depend on, as the store takes it.

    ``limit`` is None where it leaves nothing out.
    """
    own = {"source": source.fingerprint()} if hasattr(source, "fingerprint") else {}
    model = clip.fingerprint()
    return {"bank": bank, "model": model, "split": split, "precision": precision, "limit": limit, **own}


def batches_of(
    clip: CLIP, chosen: Any, *, total: int | None, limit: int | None, batch_size: int, workers: int | None
) -> Callable[[int], Iterable[Mapping[str, Any]]]:
    """A function from how many items are done to the batches of the others.

    An index is the place in the source, of a ``Selection`` that in its source.

    Args:
        clip: whose preprocessing is used.
        chosen: map-style or stream source, or a ``Selection``.
        total: number of its items, where it is known.
        limit: of items of a stream.
        batch_size, workers: of the loader.
    """
    from clipx.data.loading import evaluation_loader

    def batches(start: int) -> Iterable[Mapping[str, Any]]:
        left = None if limit is None else limit - start
        if left == 0 or start == total:
            return ()
        rest = rest_of(chosen, start)
        loader = evaluation_loader(rest, clip.preprocess, batch_size=batch_size, workers=workers, limit=left)
        return ({**batch, "index": places(batch["index"] + start)} for batch in loader)

    def places(index: Tensor) -> Tensor:
        return torch.tensor(chosen.indices)[index] if isinstance(chosen, Selection) else index

    return batches


def _feature_set(
    clip: CLIP,
    images: Entry,
    texts: Entry | None,
    bank: str,
    projection: Projection | None,
    fresh: bool,
    holders: tuple[Any, ...],
) -> FeatureSet:
    arrays = {name: torch.from_numpy(array) for name, array in images.arrays.items()}
    rows, norms, pre = arrays["image"], None, None
    if projection is not None:
        pre = rows
        rows = projection(rows.to(projection.weight.device)).cpu()
    if bank != "image":
        norms = torch.linalg.vector_norm(rows, dim=1)
        rows = unit_rows(rows) if bank == "patches" else _rows_of(clip, rows)
    return FeatureSet(
        image=rows,
        labels=arrays["labels"],
        index=arrays["index"],
        ids=images.lists["ids"],
        texts=images.lists["texts"],
        pairs=arrays["pairs"],
        text=None if texts is None else torch.from_numpy(texts.arrays["text"]),
        skipped=images.state["skipped"],
        encoded=fresh,
        norms=norms,
        pre=pre,
        patches=arrays["image"] if bank == "patches" else None,
        _holders=holders,
    )


@torch.no_grad()
def _rows_of(clip: CLIP, features: Tensor) -> Tensor:
    return clip.comparison.image_rows(features.to(clip.device)).cpu()


def encode_batches(
    clip: CLIP,
    batches: Callable[[int], Iterable[Mapping[str, Any]]],
    writer: Writer,
    *,
    embed: Embed = images_to_features,
    precision: str = "fp32",
    total: int | None = None,
    record_seconds: float = RECORD_SECONDS,
    progress: Progress | None = None,
    may_be_empty: bool = False,
) -> None:
    """Embed batches of images into an entry, with their labels, ids and captions; goes on where it stands.

    Args:
        clip: the model.
        batches: given how many items are done, the batches of the others, as ``evaluation_loader`` yields
            them: image uint8 ``[B, 3, H, W]``, label and index int64 ``[B]``, id and captions lists, bad
            (index, reason).
        writer: of the entry.
        embed: what the tower makes of images.
        precision: of the towers.
        total: number of items, where it is known.
        record_seconds: how often progress is made durable.
        progress: told after every batch.
        may_be_empty: it is no error that no item can be used; the entry has no arrays then.

    Raises:
        ClipxError: if an embedding is not finite, or no item can be used.
    """
    done = int(writer.state.get("done", 0))
    skipped: Counter[str] = Counter(writer.state.get("skipped", {}))
    places = {text: place for place, text in enumerate(writer.strings("texts"))}
    rows = done - skipped.total()
    recorded = time.monotonic()
    with evaluating(clip):
        for batch in batches(done):
            if len(batch["image"]):
                features = embed(clip, batch["image"], PRECISIONS[precision]).cpu()
                check_finite(features, "image", batch["id"])
                writer.append("image", features.numpy())
                writer.append("labels", batch["label"].numpy())
                writer.append("index", batch["index"].numpy())
                writer.extend("ids", batch["id"])
                pairs, new = [], []
                for row, captions in enumerate(batch["captions"], start=rows):
                    for caption in dict.fromkeys(captions):
                        if caption not in places:
                            places[caption] = len(places)
                            new.append(caption)
                        pairs.append((row, places[caption]))
                writer.append("pairs", np.array(pairs, dtype=np.int64).reshape(-1, 2))
                writer.extend("texts", new)
            rows += len(batch["image"])
            skipped.update(kind_of(reason) for _, reason in batch["bad"])
            done += len(batch["image"]) + len(batch["bad"])
            if time.monotonic() - recorded >= record_seconds:
                writer.record({"done": done, "skipped": dict(skipped)})
                recorded = time.monotonic()
            if progress:
                progress("image", done, total)
    if not rows and not may_be_empty:
        raise nothing_usable(skipped)
    writer.record({"done": done, "skipped": dict(skipped.most_common())})


def nothing_usable(skipped: Counter[str]) -> ClipxError:
    """The error of data of which every sample was skipped, for these reasons."""
    reasons = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common())
    return ClipxError(f"no sample of this data can be used: {reasons or 'there is none'}")


def _digest(texts: list[str]) -> str:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()


def _encode_texts(
    clip: CLIP,
    texts: list[str],
    writer: Writer,
    batch_size: int,
    precision: str,
    record_seconds: float,
    progress: Progress | None,
) -> None:
    start = int(writer.state.get("done", 0))
    recorded = time.monotonic()
    for first in range(start, len(texts), batch_size):
        part = texts[first : first + batch_size]
        writer.append("text", embed_texts(clip, part, batch_size=batch_size, precision=precision).numpy())
        if time.monotonic() - recorded >= record_seconds:
            writer.record({"done": first + len(part)})
            recorded = time.monotonic()
        if progress:
            progress("text", first + len(part), len(texts))
    writer.record({"done": len(texts)})


def embed_texts(
    clip: CLIP, texts: Sequence[str], *, batch_size: int = 256, precision: str = "fp32"
) -> Tensor:
    """Embed texts: rows float32 ``[len(texts), F]`` on the CPU.

    Args:
        clip: the model.
        texts: any number but none.
        batch_size: texts a step.
        precision: of the tower.

    Raises:
        ClipxError: if an embedding is not finite.
    """
    dtype, device = PRECISIONS[precision], clip.device
    parts = []
    with evaluating(clip), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            features = clip.encode_text(clip.shorten(clip.tokenize(part)).to(device)).float().cpu()
            check_finite(features, "text", part)
            parts.append(features)
    return torch.cat(parts)


@contextlib.contextmanager
def evaluating(clip: CLIP) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, and back."""
    training = clip.training
    clip.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        clip.train(training)


def check_finite(features: Tensor, tower: str, names: Sequence[str]) -> None:
    """Check that embeddings ``[B, D]`` are finite.

    Raises:
        ClipxError: naming the tower and the first item whose embedding is not.
    """
    wrong = (~features.isfinite().all(1)).nonzero()
    if len(wrong):
        raise ClipxError(
            f"the {tower} tower gives NaN or infinity for {names[int(wrong[0])]!r}",
            hint="are the weights of a run that diverged? precision=fp32 rules out overflow",
        )
