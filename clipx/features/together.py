"""Encode with all processes of a launch: each embeds its share, the first puts the shares together."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from clipx.errors import ClipxError
from clipx.features.encode import (
    RECORD_SECONDS,
    TOWERS,
    Progress,
    batches_of,
    description_of,
    encode_batches,
    nothing_usable,
)
from clipx.features.selection import Selection, evenly
from clipx.features.store import Entry, Writer, content_key, default_root, obtain, open_entry
from clipx.models.clip import CLIP


def encode_together(
    clip: CLIP,
    source: Any,
    *,
    split: str,
    bank: str = "image",
    root: Path | None = None,
    batch_size: int = 256,
    workers: int | None = None,
    precision: str = "fp32",
    limit: int | None = None,
    record_seconds: float = RECORD_SECONDS,
    progress: Progress | None = None,
) -> None:
    """Put the image embeddings of a source into the store, where ``encode`` then finds them.

    Collective: every process of the group calls it alike, with a store that all of them reach. Shares are
    consecutive items, so that the entry is the one that a single process would write. A share that was
    written outlives a kill, as long as as many processes start again. Nothing is done in a single process,
    for a stream, or for a source without a fingerprint: those are left to ``encode``.

    Args:
        clip, source, split, bank, root, batch_size, workers, precision, limit, record_seconds, progress: as
            ``encode`` takes them; progress is that of this process's share.

    Raises:
        ClipxError: in every process, what went wrong in the first process in which something did.
    """
    from clipx.data.loading import is_stream

    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if alone or is_stream(source) or not hasattr(source, "fingerprint"):
        return
    rank, size = dist.get_rank(), dist.get_world_size()
    root = root or default_root()
    if limit is not None and limit >= len(source):
        limit = None
    description = description_of(clip, source, split=split, bank=bank, precision=precision, limit=limit)
    there = [rank == 0 and open_entry(root, content_key(description)) is not None]
    dist.broadcast_object_list(there, src=0)
    if there[0]:
        return
    chosen = source if limit is None else evenly(source, limit)
    part = _part(chosen, len(chosen) * rank // size, len(chosen) * (rank + 1) // size)

    def write(writer: Writer) -> None:
        encode_batches(
            clip,
            batches_of(clip, part, total=len(part), limit=None, batch_size=batch_size, workers=workers),
            writer,
            embed=TOWERS[bank],
            precision=precision,
            total=len(part),
            record_seconds=record_seconds,
            progress=progress,
            may_be_empty=True,
        )

    shares = [{**description, "share": [number, size]} for number in range(size)]
    _all_do(lambda: obtain(root, shares[rank], write))
    _all_do(lambda: _assemble(root, description, shares) if rank == 0 else None)


def _part(chosen: Any, first: int, last: int) -> Selection:
    if isinstance(chosen, Selection):
        return Selection(chosen.source, chosen.indices[first:last])
    return Selection(chosen, range(first, last))


def _all_do(work: Callable[[], Any]) -> None:
    """Do this process's work and wait for the others; an error of one is the error of all."""
    problem = None
    try:
        work()
    except ClipxError as error:
        problem = (error.message, error.hint)
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise ClipxError(found[0], hint=found[1])


def _assemble(root: Path, description: dict[str, Any], shares: list[dict[str, Any]]) -> None:
    folders = [root / content_key(share) for share in shares]
    found = [open_entry(root, folder.name) for folder in folders]
    entries = [entry for entry in found if entry is not None]
    if len(entries) < len(shares):
        raise ClipxError(
            f"{len(shares) - len(entries)} of {len(shares)} shares of the features are not in {root}",
            hint="all processes need the same store: CLIPX_CACHE=DIR on a file system that they share",
        )
    obtain(root, description, lambda writer: _join(writer, entries))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)


def _join(writer: Writer, entries: list[Entry]) -> None:
    writer.restart()  # what a single process began is part of the shares
    skipped: Counter[str] = Counter()
    places: dict[str, int] = {}
    rows = 0
    for entry in entries:
        skipped.update(entry.state["skipped"])
        if "image" not in entry.arrays:
            continue
        for name in ("image", "labels", "index"):
            writer.append(name, entry.arrays[name])
        writer.extend("ids", entry.lists["ids"])
        texts = entry.lists["texts"]
        writer.extend("texts", [text for text in texts if text not in places])
        for text in texts:
            places.setdefault(text, len(places))
        own = np.array([places[text] for text in texts], dtype=np.int64)
        pairs = np.array(entry.arrays["pairs"])
        if len(pairs):
            pairs = np.stack([pairs[:, 0] + rows, own[pairs[:, 1]]], axis=1)
        writer.append("pairs", pairs)
        rows += len(entry.arrays["image"])
    if not rows:
        raise nothing_usable(skipped)
    writer.record({"done": rows + skipped.total(), "skipped": dict(skipped.most_common())})
