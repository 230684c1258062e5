"""Image data sets in the Hugging Face format, from the Hub, local files or a disk copy, whole or streamed."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from clipx.data import templates as prompts
from clipx.data.fields import UNLABELLED, Example
from clipx.data.images import MAX_PIXELS, open_image
from clipx.data.sources.columns import CAPTION, IMAGE, LABEL, captions_of, find_column, need_column, spoken
from clipx.data.sources.examples import fingerprint, one_by_one, position
from clipx.data.sources.hub import READERS, first_line, load
from clipx.data.sources.labels import ClassNames, LabelEncoder
from clipx.data.sources.paths import OUTSIDE, Root
from clipx.data.sources.shards import share, shuffled
from clipx.data.splits import check_split, empty_split, expected_share, plan
from clipx.errors import BadSample, ClipxError

_ROWS_AT_ONCE = 16


def open_huggingface(
    path: str,
    split: str = "train",
    *,
    name: str | None = None,
    splits: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    revision: str | None = None,
    streaming: bool = False,
    shuffle: int = 1000,
    image_column: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    class_names: ClassNames = None,
    templates: str | Iterable[str] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_pixels: int = MAX_PIXELS,
) -> "HuggingFace | HuggingFaceStream":
    """Open an image data set with the library ``datasets``. Code that a data set brings is never run.

    Args:
        path: a data set of the Hub (``owner/name``), a local folder of data files, a folder written by
            ``save_to_disk``, or a reader (``imagefolder``, ``parquet``, ...) with data_dir or data_files.
        split: "train", "validation", "test" or "all".
        name: configuration of the data set.
        splits: what train, validation and test are called in the data set, slices too (``train[:90%]``); None
            goes by the usual names. What is missing is cut from train by a stable hash.
        data_dir: folder inside of the data set.
        data_files: files inside of the data set, or of a reader.
        revision: branch, tag or commit on the Hub.
        streaming: read as a stream instead of downloading everything first.
        shuffle: samples read ahead to draw from when training on a stream.
        image_column: column with the image; None for the first of type Image, else a common name.
        caption_column: column with a caption, a list of them, or of objects that hold one; None for a common
            name.
        label_column: column with a number or a text; None for a common name.
        class_names: names of the classes; None takes those of the data set, else the labels themselves.
        templates: prompt templates, or their name; None leaves the default.
        validation_fraction: part of the rest that is cut for validation where the data has none, in [0, 1].
        test_fraction: part that is cut for test where the data has none, in [0, 1].
        max_pixels: an image of more pixels is a bad sample.

    Returns:
        A source with a length, or a stream.

    Raises:
        ClipxError: no such data set, split or column; the Hub cannot be reached; nothing usable.
    """
    check_split(split)
    fractions: dict[str, Any] = {"validation": validation_fraction, "test": test_fraction}
    arguments = {"name": name, "data_dir": data_dir, "data_files": data_files, "revision": revision}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    parts, given = load(path, splits, streaming, arguments)
    read, _ = plan(split, given, name=f"data.path={path}", **fractions)
    chosen = {part: parts[given[part] if given else ""] for part in (read or ("",))}
    columns = _Columns(next(iter(chosen.values())), path, image_column, caption_column, label_column)
    opened = _Opened(
        name=Path(path).name if path not in READERS or data_dir is None else Path(data_dir).name,
        split=split,
        given=tuple(given),
        fractions=fractions,
        columns=columns,
        roots=_roots(path, data_dir, data_files),
        templates=None if templates is None else prompts.templates(templates),
        max_pixels=max_pixels,
        settings=[path, arguments, dict(splits or {})],
    )
    if streaming:
        return HuggingFaceStream(chosen, opened, class_names, shuffle)
    return HuggingFace(chosen, opened, class_names, list(parts.values()))


class _Columns:
    """Which columns hold what, and the class names they declare."""

    def __init__(
        self, data: Any, where: str, image: str | None, caption: str | None, label: str | None
    ) -> None:
        features = data.features
        if features is None:
            # Some streams tell their columns only with the first row.
            features = dict.fromkeys(next(iter(data.take(1)), {}))
        names = list(features)
        pictured = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
        found = find_column(names, image, IMAGE, "image_column", where)
        if image is None and pictured:
            found = pictured[0]
        self.image = need_column(found, "image_column", names, where)
        kind = features[self.image]
        plain = getattr(kind, "dtype", "") in {"string", "large_string", "binary", "large_binary"}
        pair = isinstance(kind, dict) and kind.keys() <= {"bytes", "path"}
        if not (kind is None or plain or pair or self.image in pictured):
            raise ClipxError(
                f"{where}: column {self.image!r} is {type(kind).__name__}, not an image",
                hint=f"data.image_column names one of: {', '.join(names)}",
            )
        others = [column for column in names if column != self.image]
        self.caption = find_column(others, caption, CAPTION, "caption_column", where)
        self.label = find_column(others, label, LABEL, "label_column", where)
        if self.caption is None and self.label is None:
            raise ClipxError(
                f"{where} has no column that looks like a caption or a label",
                hint=f"data.caption_column or data.label_column names one of: {', '.join(names)}",
            )
        self.names: list[str] | None = getattr(features.get(self.label), "names", None)
        self.used = [column for column in (self.image, self.caption, self.label) if column is not None]

    def select(self, data: Any) -> Any:
        """The used columns, with images as their files' bytes."""
        from datasets import Image as ImageFeature

        return data.select_columns(self.used).cast_column(self.image, ImageFeature(decode=False))


@dataclass(frozen=True)
class _Opened:
    """What both kinds of source need to know."""

    name: str
    split: str
    given: tuple[str, ...]
    fractions: dict[str, Any]
    columns: _Columns
    roots: list[Root]
    templates: list[str] | None
    max_pixels: int
    settings: list[Any]

    def keep(self) -> Callable[[str], bool]:
        """Which ids belong to the split."""
        return plan(self.split, self.given, **self.fractions)[1]

    def image(self, cells: dict[str, Any]) -> Image.Image:
        return _open_cell(cells[self.columns.image], self.roots, self.max_pixels)

    def captions(self, cells: dict[str, Any]) -> list[str]:
        return captions_of(cells[self.columns.caption]) if self.columns.caption else []


class HuggingFace:
    """A data set with a length; made by ``open_huggingface``.

    Attributes:
        skipped: rows without caption and label, counted at construction.
    """

    def __init__(
        self,
        chosen: dict[str, Any],
        opened: _Opened,
        class_names: ClassNames,
        every_part: list[Any],
    ) -> None:
        columns = opened.columns
        self.name, self.split, self.templates = opened.name, opened.split, opened.templates
        self.classes: list[str] | None = None
        self.skipped: dict[str, int] = {}
        self._opened = opened
        self._parts = {part: columns.select(data) for part, data in chosen.items()}
        encoder = None
        if columns.label is not None:
            encoder = LabelEncoder(
                [_column(data, columns.label) for data in every_part], columns.names, class_names, self.name
            )
            self.classes = encoder.classes
        keep = opened.keep()
        rows: list[tuple[int, int]] = []
        labels: list[np.ndarray] = []
        usable = 0
        for number, (part, data) in enumerate(self._parts.items()):
            codes = np.full(len(data), UNLABELLED)
            if encoder is not None and columns.label is not None:
                codes = encoder(_column(data, columns.label), f"{self.name} {part}".strip())
            good = codes != UNLABELLED
            if columns.caption is not None:
                good |= spoken(_column(data, columns.caption))
            usable += int(good.sum())
            reason = "no label" if columns.caption is None else "blank caption"
            if not good.all():
                self.skipped[reason] = self.skipped.get(reason, 0) + int((~good).sum())
            here = [row for row in np.flatnonzero(good).tolist() if keep(f"{part}#{row}")]
            rows += [(number, row) for row in here]
            labels.append(codes[here])
        if not rows:
            raise empty_split(self.split, usable, f"data.path={self.name}")
        self._rows = np.array(rows, np.int64)
        self.labels = np.concatenate(labels).astype(np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        index = position(index, len(self), self.name)
        number, row = self._rows[index].tolist()
        part = list(self._parts)[number]
        cells = self._parts[part][row]
        return {
            "image": self._opened.image(cells),
            "captions": self._opened.captions(cells),
            "label": int(self.labels[index]),
            "id": f"{part}#{row}",
        }

    def examples(self, indices: Iterable[int]) -> list[Example | BadSample]:
        """Items by position, one example or ``BadSample`` each."""
        return one_by_one(self, indices)

    def fingerprint(self) -> str:
        """A hash of the data set's own fingerprint, of the rows chosen from it, and of the settings."""
        rows = fingerprint(self._rows.tolist(), self.labels.tolist())
        own = [str(data._fingerprint) for data in self._parts.values()]
        used, limit = self._opened.columns.used, self._opened.max_pixels
        return fingerprint("huggingface", self.split, own, rows, self.classes, limit, used)


class HuggingFaceStream:
    """A data set as a stream; made by ``open_huggingface``.

    Rows have no names, so an example's id is a hash of its image; splits are cut by it where they have to be.

    Attributes:
        size: number of samples if the data set tells it; where a split is cut by hash, its expectation.
    """

    def __init__(
        self,
        chosen: dict[str, Any],
        opened: _Opened,
        class_names: ClassNames,
        shuffle: int,
    ) -> None:
        columns = opened.columns
        self.name, self.split, self.templates = opened.name, opened.split, opened.templates
        self._opened = opened
        self._shuffle = shuffle if opened.split == "train" else 0
        if class_names is not None:
            self.classes: list[str] | None = prompts.class_names(class_names, columns.names)
        else:
            self.classes = (
                None if columns.names is None else [prompts.class_name(text) for text in columns.names]
            )
        if columns.caption is None and self.classes is None:
            raise ClipxError(
                f"the labels of {self.name} have no names, and a stream cannot be searched for them",
                hint="data.class_names=[...], or data.streaming=false",
            )
        sizes = [_told_size(data) for data in chosen.values()]
        known = None if None in sizes else sum(size for size in sizes if size is not None)
        share = expected_share(opened.split, opened.given, **opened.fractions)
        self.size = None if known is None else round(known * share)
        self._parts = [columns.select(data) for data in chosen.values()]

    def stream(
        self,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        worker: int = 0,
        workers: int = 1,
        skip: int = 0,
    ) -> Iterator[Example | BadSample]:
        """One worker's share of an epoch, the same for the same arguments.

        Args:
            seed: of the shuffling.
            epoch: of the shuffling.
            rank: of this process, in [0, world).
            world: number of processes.
            worker: of this loader worker, in [0, workers).
            workers: loader workers a process.
            skip: items to pass over, read but not decoded.

        Yields:
            An example, or a ``BadSample`` for one that cannot be used; one for the rest of a corrupt shard.
        """
        keep = self._opened.keep()
        reader = rank * workers + worker
        shards = [
            (part, number) for part, data in enumerate(self._parts) for number in range(data.num_shards)
        ]
        if self._shuffle:
            random.Random(f"shards/{seed}/{epoch}").shuffle(shards)
        # Our own sharing and shuffling: those of datasets depend on its version and on the loader around
        # them.
        rows = share(shards, reader, world * workers, lambda shard: self._rows(*shard, keep))
        if self._shuffle > 1:
            rows = shuffled(rows, self._shuffle, random.Random(f"samples/{seed}/{epoch}/{reader}"))
        for row in islice(rows, skip, None):
            if isinstance(row, BadSample):
                yield row
                continue
            try:
                yield self._example(*row)
            except BadSample as bad:
                yield bad.with_traceback(None)

    def fingerprint(self) -> str:
        """A hash of the name and the settings; what the Hub holds is told by ``revision`` alone."""
        opened = self._opened
        return fingerprint(
            "huggingface-stream",
            *(opened.settings, opened.split, opened.given, opened.fractions, opened.columns.used),
            *(self.classes, opened.max_pixels),
        )

    def _rows(
        self, part: int, number: int, keep: Callable[[str], bool]
    ) -> Iterator[tuple[dict[str, Any], str] | BadSample]:
        """The rows of one shard that belong to the split, undecoded, and their names."""
        data = self._parts[part]
        data = data.shard(num_shards=data.num_shards, index=number)
        # iter() and not a plain loop: inside of a loader worker a plain loop would share out once more.
        batches = data.iter(batch_size=_ROWS_AT_ONCE)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                yield BadSample(f"corrupt shard: {self.name}, shard {number}: {first_line(error)}")
                return
            if batch is None:
                return
            for values in zip(*batch.values(), strict=True):
                cells = dict(zip(batch, values, strict=True))
                name = _content_name(cells[self._opened.columns.image])
                if keep(name):
                    yield cells, name

    def _example(self, cells: dict[str, Any], name: str) -> Example:
        captions = self._opened.captions(cells)
        column = self._opened.columns.label
        label = UNLABELLED if column is None else self._label(cells[column], name)
        if not captions and label == UNLABELLED:
            raise BadSample(f"blank caption: {name} has neither a caption nor a label")
        return {"image": self._opened.image(cells), "captions": captions, "label": label, "id": name}

    def _label(self, value: Any, name: str) -> int:
        if value is None or value == UNLABELLED or self.classes is None:
            return UNLABELLED
        for names in (self.classes, self._opened.columns.names or ()):
            if value in names:
                return list(names).index(value)
        if isinstance(value, int) and 0 <= value < len(self.classes):
            return value
        raise BadSample(f"label out of range: {name} has {value!r}, of {len(self.classes)} classes")


def _column(data: Any, name: str) -> pa.ChunkedArray:
    return data.select_columns([name]).with_format("arrow")[:].column(name)


def _told_size(data: Any) -> int | None:
    told = (data.info.splits or {}).get(str(data.split)) if data.split is not None else None
    return None if told is None or not told.num_examples else int(told.num_examples)


def _content(cell: Any) -> tuple[bytes | None, str | None]:
    """The bytes and the path in an image cell."""
    if isinstance(cell, dict):
        return cell.get("bytes"), cell.get("path")
    return (cell, None) if isinstance(cell, bytes) else (None, cell)


def _content_name(cell: Any) -> str:
    content, path = _content(cell)
    return hashlib.blake2b(content or (path or "").encode(), digest_size=8).hexdigest()


def _roots(path: str, data_dir: str | None, data_files: Any) -> list[Root]:
    """Where files that the data names may lie: what the user named, and the caches of datasets."""
    from datasets import config

    files = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    named = [file for some in files for file in ([some] if isinstance(some, str) else some or [])]
    folders = [path, data_dir, *(os.path.dirname(file) or "." for file in named if "://" not in file)]
    folders += [str(config.HF_DATASETS_CACHE), str(config.DOWNLOADED_DATASETS_PATH)]
    return [Root(folder) for folder in folders if folder and "*" not in folder and Path(folder).is_dir()]


def _open_cell(cell: Any, roots: list[Root], max_pixels: int) -> Image.Image:
    content, path = _content(cell)
    if content:
        return open_image(content, max_pixels=max_pixels)
    if not path:
        raise BadSample("no image: the cell is empty")
    if "://" in path:
        # The reader's own address of a file inside of an archive or on the Hub.
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                content = file.read()
        except Exception as error:
            raise BadSample(f"unreadable file: {path}: {first_line(error)}") from None
        return open_image(content, max_pixels=max_pixels)
    reason = OUTSIDE
    for root in roots:
        place, reason = root.locate(path)
        if place is not None:
            return open_image(root.path / place, max_pixels=max_pixels)
    raise BadSample(f"{reason}: {path}")
