"""From a source to batches: for training (endless, exact on resume) and for evaluation (each item once)."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from clipx.data.fields import TEXT_VIEWS, UNLABELLED
from clipx.data.order import TrainingOrder, sample_generator, turn
from clipx.data.semantics import Semantics
from clipx.data.text_changes import TextChange
from clipx.data.transforms import TrainTransform, to_tensor
from clipx.data.views import Views
from clipx.errors import BadSample, ClipxError, did_you_mean, kind_of
from clipx.machine import own_cores

DEFAULT_TEMPLATES = ("a photo of a {}.",)
CAPTION_CHOICES = ("random", "turns")
_TRIES = 1000
"""Bad samples in a row before the data is called unusable."""
_REMEMBERED = 1 << 16
"""Texts whose tokens a loader process keeps."""


def is_stream(source: Any) -> bool:
    """Whether a source is read from front to back (shards) and has no items by index."""
    return hasattr(source, "stream")


def worker_count(requested: int | None) -> int:
    """Loader processes: as asked, else one a core of this process's but one (for training), at most eight."""
    return requested if requested is not None else max(1, min(8, own_cores() - 1))


_OF_ALL = {signal.SIGINT, signal.SIGTERM}
"""Signals that a terminal or a scheduler sends to every process."""


def _outlive_signals(worker: int) -> None:
    """Let a worker outlive the Ctrl-C or SIGTERM that a terminal or a scheduler sends to every process.

    The main process may still need batches to finish its step; it ends its workers itself, if need be with
    another SIGTERM. What was sent before, while ``_Loader`` held it back, is met here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_ALL)


def captions_of(example: Any, classes: Sequence[str] | None, templates: Sequence[str]) -> list[str]:
    """The captions of an example: its own, else its class in every template.

    Raises:
        BadSample: it has neither, or its label lies outside the classes.
    """
    captions = [caption for caption in example.get("captions") or [] if caption and caption.strip()]
    if captions:
        return captions
    label = example.get("label", UNLABELLED)
    if label == UNLABELLED or classes is None:
        raise BadSample("neither a caption nor a label")
    if not 0 <= label < len(classes):
        raise BadSample(f"label {label} outside the {len(classes)} classes")
    return [template.replace("{}", classes[label]) for template in templates]


class _Tokens:
    """Token ids int64 ``[L]`` of one text, remembered: captions from templates come again and again."""

    def __init__(self, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.tokenize = tokenize
        self.known: dict[str, Tensor] = {}

    def __call__(self, text: str) -> Tensor:
        tokens = self.known.get(text)
        if tokens is None:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            tokens = self.known[text] = self.tokenize([text])[0]
        return tokens


class _Encoder:
    """Turns one example into the tensors of a training batch."""

    def __init__(
        self,
        source: Any,
        transform: TrainTransform,
        tokenize: Callable[[list[str]], Tensor],
        templates: Sequence[str],
        extras: Sequence[str],
        views: Views | None = None,
        change: TextChange | None = None,
        semantics: Semantics | None = None,
        turns: int | None = None,
    ) -> None:
        self.classes = source.classes
        self.transform = transform
        self.tokens = _Tokens(tokenize)
        self.templates = list(templates)
        self.extras = list(extras)
        self.views = views
        self.change = change
        self.semantics = semantics
        self.turns = turns
        self.text_views = [name for name in TEXT_VIEWS if name in self.extras]

    def __call__(
        self, example: Any, index: int, generator: np.random.Generator, epoch: int = 0
    ) -> dict[str, Any]:
        captions = captions_of(example, self.classes, self.templates)
        image = self.transform(example["image"], generator)
        place = int(generator.integers(len(captions)))
        if self.turns is not None:
            place = turn(len(captions), self.turns, epoch, index)
        caption = captions[place]
        item = {
            "image": image,
            "text": self.tokens(caption if self.change is None else self.change(caption, generator)),
            "label": example.get("label", UNLABELLED),
            "index": index,
        }
        if "negative_text" in self.extras:
            item["negative_text"] = self.tokens(str(generator.choice(example["negative_captions"])))
        if "negative_image" in self.extras:
            item["negative_image"] = self.transform(example["negative_image"], generator)
        for name in ("boxes", "masks", "depth"):
            if name in self.extras:
                item[name] = torch.as_tensor(np.asarray(example[name]))
        if self.views is not None:
            item |= self.views.images(example["image"], generator, self.extras)
            texts = self.views.texts(caption, captions, generator, self.text_views)
            item |= {name: self.tokens(text) for name, text in texts.items()}
        if self.semantics is not None:
            item["caption"] = caption
        return item

    def together(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Items with what is found out about all of them at once: what their captions mean."""
        if self.semantics is not None:
            rows = self.semantics([item.pop("caption") for item in items])
            for item, row in zip(items, rows, strict=True):
                item["semantics"] = row
        return items


class TrainingPairs(Dataset):
    """Map-style source -> encoded items, a batch at a time; a bad one gives way to its next good one."""

    def __init__(self, source: Any, encoder: _Encoder, seed: int) -> None:
        self.source = source
        self.encoder = encoder
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]] | list[ClipxError]:
        """Items of ``(epoch, index)`` keys; alone the user's mistake that came up, see ``_Loader``."""
        try:
            examples = self.source.examples([index for _, index in keys])
            items = [
                self._item(epoch, index, example)
                for (epoch, index), example in zip(keys, examples, strict=True)
            ]
            return self.encoder.together(items)
        except ClipxError as error:
            return [error]

    def _item(self, epoch: int, index: int, example: Any) -> dict[str, Any]:
        bad: list[tuple[str, str]] = []
        for _ in range(_TRIES):
            try:
                if isinstance(example, BadSample):
                    raise example
                item = self.encoder(example, index, sample_generator(self.seed, epoch, index), epoch)
                return {**item, "bad": bad}
            except BadSample as reason:
                bad.append((str(index), str(reason)))
                index = (index + 1) % len(self.source)
                example = self.source.examples([index])[0]
        raise _unusable(bad[-1][1])


def _unusable(reason: str) -> ClipxError:
    return ClipxError(f"{_TRIES} samples in a row cannot be used; the last: {reason}")


class TrainingStream(IterableDataset):
    """Stream source -> batches; each carries where its worker stands, so that a resumed run goes on there."""

    def __init__(
        self,
        source: Any,
        encoder: _Encoder,
        seed: int,
        batch_size: int,
        rank: int,
        world: int,
        positions: Mapping[int, Sequence[int]],
        first_worker: int,
    ) -> None:
        self.source = source
        self.encoder = encoder
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.positions = positions
        self.first_worker = first_worker

    def __iter__(self) -> Iterator[dict[str, Any] | ClipxError]:
        """Batches; last the user's mistake that came up, see ``_Loader``."""
        try:
            yield from self._batches()
        except ClipxError as error:
            yield error

    def _batches(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        workers = info.num_workers if info else 1
        # Batches come from workers in turn: the worker whose turn it was when the run stopped goes first.
        worker = ((info.id if info else 0) + self.first_worker) % workers
        _, epoch, skip = self.positions.get(worker, (workers, 0, 0))
        items: list[dict[str, Any]] = []
        bad: list[tuple[str, str]] = []
        in_a_row = fruitless = 0
        while True:
            count, found = skip, False
            share = {"rank": self.rank, "world": self.world, "worker": worker, "workers": workers}
            for example in self.source.stream(seed=self.seed, epoch=epoch, skip=skip, **share):
                try:
                    if isinstance(example, BadSample):
                        raise example
                    generator = sample_generator(self.seed, epoch, count, self.rank * workers + worker)
                    items.append(self.encoder(example, count, generator))
                    in_a_row, found = 0, True
                except BadSample as reason:
                    bad.append((f"{self.rank}/{worker}/{epoch}/{count}", str(reason)))
                    in_a_row += 1
                    if in_a_row == _TRIES:
                        raise _unusable(str(reason)) from None
                count += 1
                if len(items) == self.batch_size:
                    batch = collate(self.encoder.together(items))
                    yield {**batch, "bad": bad, "position": (worker, workers, epoch, count)}
                    items, bad = [], []
            if found:
                fruitless = 0
            elif skip == 0:
                fruitless += 1
            if fruitless > 2:
                raise ClipxError(
                    f"worker {worker} of {workers} found no usable sample in its share of the data",
                    hint="use fewer workers (loader.workers=1) or more shards",
                )
            epoch, skip = epoch + 1, 0


class _Loader(DataLoader):
    """Raises a user's mistake that a loader process met as it is; torch would bury it in a traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Workers start with these held back: one that comes before a worker can meet it would end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_ALL)
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for batch in batches:
            if isinstance(batch, ClipxError):
                raise batch
            yield batch


def _as_it_is(value: Any) -> Any:
    return value


def _collate_training(items: list[Any]) -> Any:
    return items[0] if isinstance(items[0], ClipxError) else collate(items)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch; reports of bad samples are joined."""
    batch: dict[str, Any] = {"bad": [report for item in items for report in item.get("bad", ())]}
    for name, first in items[0].items():
        if name == "bad":
            continue
        values = [item[name] for item in items]
        if isinstance(first, Tensor):
            same = all(value.shape == first.shape for value in values)
            batch[name] = torch.stack(values) if same else _pad(values)
        else:
            batch[name] = torch.tensor(values)
    return batch


def _pad(values: list[Tensor]) -> Tensor:
    """Stack ragged tensors, the missing rows filled with -1 (False for masks)."""
    shape = [max(value.shape[axis] for value in values) for axis in range(values[0].ndim)]
    filled = (
        torch.full((len(values), *shape), -1, dtype=values[0].dtype)
        if values[0].dtype != torch.bool
        else None
    )
    padded = filled if filled is not None else torch.zeros((len(values), *shape), dtype=torch.bool)
    for row, value in zip(padded, values, strict=True):
        row[tuple(slice(0, n) for n in value.shape)] = value
    return padded


def training_loader(
    source: Any,
    *,
    transform: TrainTransform,
    tokenize: Callable[[list[str]], Tensor],
    templates: Sequence[str] | None = None,
    extras: Sequence[str] = (),
    batch_size: int,
    seed: int,
    steps: tuple[int, int],
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    positions: Mapping[int, Sequence[int]] | None = None,
    views: Views | None = None,
    change: TextChange | None = None,
    semantics: Semantics | None = None,
    captions: str = "random",
) -> DataLoader:
    """Batches of steps ``first`` to ``end`` of a run, for one process.

    Args:
        source: map-style or stream source.
        transform: augmentation, drawn from a generator of (seed, epoch, index).
        tokenize: ``list[str] -> int64 [B, L]``.
        templates: for examples that have a label and no caption; None for the source's own, else "a photo of
            a {}.".
        extras: further batch fields that objectives need.
        batch_size: of this process.
        seed: of the run.
        steps: (first, end).
        workers: loader processes; None chooses, 0 loads in this process.
        rank: of this process in ``world``.
        positions: of a stream's workers, as batches reported them, to go on from; with ``workers`` None as
            many workers as then.
        views: what makes the views that ``extras`` ask for.
        change: of the caption itself, which its views do not see; None for none.
        semantics: what gives the field ``semantics`` of captions as they are, before a change; None for none.
        captions: which of several captions of a sample an epoch takes: ``random``; or ``turns``: each once
            before one comes again, of data with an index.

    Raises:
        ClipxError: fewer than two samples, or another number of workers than that which read a stream so far;
            while iterating: data that cannot be used.

    Returns:
        a loader of dicts: image uint8 ``[B, 3, H, W]``, text int64 ``[B, L]``, label, index, ``bad`` (reports
        of samples passed over) and, from a stream, ``position`` (worker, workers,
        epoch, count).
    """
    workers = worker_count(workers) if not positions else _as_before(workers, positions)
    used = templates or getattr(source, "templates", None) or DEFAULT_TEMPLATES
    if captions not in CAPTION_CHOICES:
        raise ClipxError(
            f"there is no augment.captions={captions}", hint=did_you_mean(str(captions), CAPTION_CHOICES)
        )
    if captions == "turns" and is_stream(source):
        raise ClipxError("a stream does not know its samples again", hint="augment.captions=random")
    turns = seed if captions == "turns" else None
    encoder = _Encoder(source, transform, tokenize, used, extras, views, change, semantics, turns)
    common: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        "prefetch_factor": 4 if workers else None,
        "worker_init_fn": _outlive_signals,
    }
    if is_stream(source):
        first = steps[0] % workers if workers else 0
        stream = TrainingStream(source, encoder, seed, batch_size, rank, world, positions or {}, first)
        return _Loader(stream, batch_size=None, collate_fn=_as_it_is, **common)
    if len(source) < 2:
        raise ClipxError(f"the data has {len(source)} usable samples, training needs at least 2")
    order = TrainingOrder(len(source), batch_size, seed, steps, rank, world)
    pairs = TrainingPairs(source, encoder, seed)
    return _Loader(pairs, batch_sampler=order, collate_fn=_collate_training, **common)


def _as_before(workers: int | None, positions: Mapping[int, Sequence[int]]) -> int:
    """The loader processes of a run that goes on: what each has read depends on how many there are."""
    before = next(iter(positions.values()))[0]
    if workers is not None and max(1, workers) != before:
        raise ClipxError(
            f"this run read its stream with {before} loader processes and cannot go on with {workers}",
            hint=f"loader.workers={before}",
        )
    return before if workers is None else workers


class _EvaluationItems(Dataset):
    def __init__(self, source: Any, preprocess: Callable[[Any], Tensor], limit: int) -> None:
        self.source = source
        self.preprocess = preprocess
        self.limit = limit

    def __len__(self) -> int:
        return self.limit

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]] | list[ClipxError]:
        try:
            return [
                _evaluation_item(example, index, self.preprocess)
                for index, example in zip(indices, self.source.examples(indices), strict=True)
            ]
        except ClipxError as error:
            return [error]


class _EvaluationStream(IterableDataset):
    def __init__(self, source: Any, preprocess: Callable[[Any], Tensor], limit: int | None) -> None:
        self.source = source
        self.preprocess = preprocess
        self.limit = limit

    def __iter__(self) -> Iterator[dict[str, Any] | ClipxError]:
        try:
            examples = self.source.stream(seed=0, epoch=0, rank=0, world=1, worker=0, workers=1, skip=0)
            for index, example in enumerate(examples):
                if self.limit is not None and index >= self.limit:
                    return
                yield _evaluation_item(example, index, self.preprocess)
        except ClipxError as error:
            yield error


def _evaluation_item(example: Any, index: int, preprocess: Callable[[Any], Tensor]) -> dict[str, Any]:
    try:
        if isinstance(example, BadSample):
            raise example
        return {
            "image": preprocess(example["image"]),
            "label": example.get("label", UNLABELLED),
            "index": index,
            "id": example.get("id", str(index)),
            "captions": list(example.get("captions") or []),
        }
    except BadSample as reason:
        return {"bad": (str(index), str(reason))}


def _collate_evaluation(items: list[Any]) -> Any:
    if isinstance(items[-1], ClipxError):
        return items[-1]
    good = [item for item in items if "bad" not in item]
    return {
        "image": torch.stack([item["image"] for item in good])
        if good
        else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        "label": torch.tensor([item["label"] for item in good], dtype=torch.int64),
        "index": torch.tensor([item["index"] for item in good], dtype=torch.int64),
        "id": [item["id"] for item in good],
        "captions": [item["captions"] for item in good],
        "bad": [item["bad"] for item in items if "bad" in item],
    }


def evaluation_loader(
    source: Any,
    preprocess: Callable[[Any], Tensor],
    *,
    batch_size: int = 256,
    workers: int | None = None,
    limit: int | None = None,
) -> DataLoader:
    """Every usable item of a source once, in order.

    Args:
        source: map-style or stream source.
        preprocess: ``image -> uint8 [3, H, W]``, as ``CLIP.preprocess``.
        batch_size: items a batch; bad ones are missing from theirs.
        workers: loader processes; None chooses, 0 loads in this process. A stream is read by one.
        limit: stop after so many items.

    Returns:
        a loader of dicts: image uint8 ``[B, 3, H, W]``, label, index int64 ``[B]``, id list[str], captions
        list[list[str]], bad list of (index, reason).
    """
    workers = worker_count(workers)
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "collate_fn": _collate_evaluation,
        "worker_init_fn": _outlive_signals,
    }
    if is_stream(source):
        return _Loader(_EvaluationStream(source, preprocess, limit), num_workers=min(workers, 1), **common)
    count = len(source) if limit is None else min(limit, len(source))
    if count <= 2 * batch_size:
        workers = 0  # starting a process would cost more than it saves
    return _Loader(_EvaluationItems(source, preprocess, count), num_workers=workers, **common)


def count_reasons(bad: dict[str, str]) -> dict[str, int]:
    """How many samples were passed over for each reason, most frequent first."""
    return dict(Counter(map(kind_of, bad.values())).most_common())


__all__ = [
    "captions_of",
    "collate",
    "count_reasons",
    "evaluation_loader",
    "is_stream",
    "to_tensor",
    "training_loader",
    "worker_count",
]
