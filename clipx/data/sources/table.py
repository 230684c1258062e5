"""Tables of images with captions or labels: Parquet, Arrow, CSV, JSON Lines."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipx.data import templates as prompts
from clipx.data.fields import UNLABELLED, Example
from clipx.data.images import MAX_PIXELS
from clipx.data.sources.arrow import column_names, read_table, table_files
from clipx.data.sources.cells import holds_images, holds_paths, open_cell
from clipx.data.sources.columns import CAPTION, IMAGE, LABEL, captions_of, find_column, need_column, spoken
from clipx.data.sources.examples import file_state, fingerprint, one_by_one, position
from clipx.data.sources.labels import ClassNames, LabelEncoder, class_label_names
from clipx.data.sources.paths import Root, locate_all
from clipx.data.splits import check_split, empty_split, plan, split_alias
from clipx.errors import BadSample, ClipxError


@dataclass(frozen=True)
class _Part:
    """One file's columns, row by row."""

    root: Root
    images: pa.ChunkedArray
    captions: pa.ChunkedArray | None


class Table:
    """Images listed in table files, one a row.

    The image is a path, the bytes of an image file, or Hugging Face's
    struct of both. Rows that name the same path are one example with several captions. Splits are the files
    given for them, or files whose names begin with a split (``train-00000-of-00002.parquet``); what is
    missing is cut from train by a stable hash of the image's path, or of file name and row.

    Args:
        path: a file, a pattern, a folder, or a list of them; None where the splits have files of their own.
        split: "train", "validation", "test" or "all".
        train: files of the training split.
        validation: files of the validation split.
        test: files of the test split.
        root: folder that the names of the files, and image paths in them, are relative to; None: files are
            relative to the working directory, and image paths to the file that names them.
        image_column: column with the image; None to look for a common name.
        caption_column: column with a caption or a list of them; None to look for a common name.
        label_column: column with a number or a text; None to look for a common name.
        class_names: names of the classes: a known set, a file (also relative to the table), a list or a
            mapping; None takes those of the file's Hugging Face metadata, else the labels themselves.
        templates: prompt templates, or their name; None leaves the default.
        validation_fraction: part of the rest that is cut for validation where the data has none, in [0, 1].
        test_fraction: part that is cut for test where the data has none, in [0, 1].
        max_pixels: an image of more pixels is a bad sample.

    Attributes:
        skipped: what was left out at construction, by reason.

    Raises:
        ClipxError: no such file, an unreadable one, missing columns, labels outside of the classes, nothing
            usable.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None = None,
        split: str = "train",
        *,
        train: str | Sequence[str] | None = None,
        validation: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        root: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        class_names: ClassNames = None,
        templates: str | Iterable[str] | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_split(split)
        self.split = split
        self.templates = None if templates is None else prompts.templates(templates)
        self.classes: list[str] | None = None
        self.skipped: dict[str, int] = {}
        self._max_pixels = max_pixels
        self._root = None if root is None else Root(root)
        self._files = _files_by_split(
            path,
            {"train": train, "validation": validation, "test": test},
            None if self._root is None else self._root.path,
        )
        everything = [file for files in self._files.values() for file in files]
        self.name = _name(everything)

        first = column_names(everything[0])
        where = everything[0].name
        image = need_column(
            find_column(first, image_column, IMAGE, "image_column", where), "image_column", first, where
        )
        others = [name for name in first if name != image]
        caption = find_column(others, caption_column, CAPTION, "caption_column", where)
        label = find_column(others, label_column, LABEL, "label_column", where)
        if caption is None and label is None:
            raise ClipxError(
                f"{where} has no column that looks like a caption or a label",
                hint=f"data.caption_column or data.label_column names one of: {', '.join(first) or 'none'}",
            )
        self._columns = [name for name in (image, caption, label) if name is not None]

        read, keep = plan(
            split, set(self._files) - {""}, validation=validation_fraction, test=test_fraction, name=self.name
        )
        chosen = [file for part in (read or ("",)) for file in self._files[part]]
        text = [name for name in (image, caption) if name is not None]
        tables = {file: self._read(file, self._columns, text) for file in chosen}
        encoder = None
        if label is not None:
            # Every split is asked, so that they number their classes alike.
            columns = [
                (tables[file] if file in tables else self._read(file, [label], ())).column(label)
                for file in everything
            ]
            names = class_label_names(tables[chosen[0]].schema, label)
            encoder = LabelEncoder(columns, names, _beside(class_names, everything[0]), self.name)
            self.classes = encoder.classes
            if caption is None and len(self.classes) < 2:
                raise ClipxError(
                    f"classification needs two classes or more, and {self.name} has {len(self.classes)}",
                    hint=f"its label column is {label!r}; data.label_column names another",
                )

        self._parts: list[_Part] = []
        rows: list[tuple[int, int]] = []
        ids: list[str] = []
        labels: list[int] = []
        self._grouped: dict[int, list[tuple[int, int]]] = {}
        usable = 0
        for number, (file, table) in enumerate(tables.items()):
            part = _Part(
                self._root or Root(file.parent),
                table.column(image),
                None if caption is None else table.column(caption),
            )
            self._parts.append(part)
            codes = (
                np.full(len(table), UNLABELLED)
                if encoder is None
                else encoder(table.column(label), str(file))
            )
            names_of_rows, good = self._usable(part, codes, file, caption is not None)
            usable += int(good.sum())
            seen: dict[str, int] = {}
            for row in np.flatnonzero(good).tolist():
                item = names_of_rows[row]
                if not keep(item):
                    continue
                if caption is not None and item in seen:
                    self._grouped.setdefault(seen[item], []).append((number, row))
                    continue
                seen[item] = len(rows)
                rows.append((number, row))
                ids.append(item)
                labels.append(int(codes[row]))
        if not rows:
            raise empty_split(split, usable, self.name)
        self._rows = np.array(rows, np.int64)
        self._ids = pa.array(ids, pa.large_string())
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        index = position(index, len(self), self.name)
        number, row = self._rows[index].tolist()
        part = self._parts[number]
        return {
            "image": open_cell(part.images[row].as_py(), part.root, self._max_pixels),
            "captions": [
                caption
                for number, row in [(number, row), *self._grouped.get(index, [])]
                for caption in self._captions_at(number, row)
            ],
            "label": int(self.labels[index]),
            "id": self._ids[index].as_py(),
        }

    def examples(self, indices: Iterable[int]) -> list[Example | BadSample]:
        """Items by position, one example or ``BadSample`` each."""
        return one_by_one(self, indices)

    def fingerprint(self) -> str:
        """A hash of the files' paths, sizes and times, of the rows chosen from them, and of the settings."""
        states = [
            (split, str(file.resolve()), file_state(file))
            for split, files in self._files.items()
            for file in files
        ]
        rows = fingerprint(self._rows.tolist(), self.labels.tolist())
        return fingerprint("table", self.split, states, self._columns, rows, self.classes, self._max_pixels)

    def _captions_at(self, number: int, row: int) -> list[str]:
        captions = self._parts[number].captions
        return [] if captions is None else captions_of(captions[row].as_py())

    def _read(self, file: Path, columns: Sequence[str], text: Sequence[str]) -> pa.Table:
        have = column_names(file)
        for name in columns:
            if name not in have:
                raise ClipxError(
                    f"{file.name} has no column {name!r}", hint=f"it has: {', '.join(have) or 'none'}"
                )
        return read_table(file, columns, text=text, skipped=self.skipped)

    def _usable(
        self, part: _Part, codes: np.ndarray, file: Path, captioned: bool
    ) -> tuple[Sequence[str], np.ndarray]:
        """Name every row and say which can be used, counting the others."""
        length = len(codes)
        good = codes != UNLABELLED
        if part.captions is not None:
            good |= spoken(part.captions)
        self._count("blank caption" if captioned else "no label", length - int(good.sum()))
        kind = part.images.type
        if holds_paths(kind):
            asked = np.flatnonzero(good)
            texts = part.images.to_pylist()
            places = locate_all(part.root, (texts[row] for row in asked), self.skipped, file.name)
            names = [""] * length
            for row, place in zip(asked.tolist(), places, strict=True):
                names[row] = place or ""
                good[row] = place is not None
            return names, good
        if not holds_images(kind):
            raise ClipxError(
                f"{file.name}: the image column {self._columns[0]!r} holds {kind}",
                hint="a path, the bytes of an image file, or a struct of bytes and path",
            )
        there = pc.is_valid(part.images).to_numpy()
        self._count("no image", int((good & ~there).sum()))
        return [f"{file.name}#{row}" for row in range(length)], good & there

    def _count(self, reason: str, number: int) -> None:
        if number:
            self.skipped[reason] = self.skipped.get(reason, 0) + number


def _files_by_split(path: Any, splits: dict[str, Any], root: Path | None) -> dict[str, list[Path]]:
    given = {name: files for name, files in splits.items() if files}
    if path and given:
        raise ClipxError(f"data.path and data.{next(iter(given))} are both given", hint="one or the other")
    if given:
        return {name: table_files(files, f"data.{name}", root) for name, files in given.items()}
    if not path:
        raise ClipxError(
            "the table has no files", hint="data.path=table.parquet, or data.train=... data.test=..."
        )
    files = table_files(path, "data.path", root)
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(split_alias(re.split(r"[-_.]", file.name, maxsplit=1)[0]) or "", []).append(file)
    # One file called test.csv that the user names is their data, not a split of it.
    return named if "" not in named and len(files) > 1 else {"": files}


def _name(files: Sequence[Path]) -> str:
    stem = files[0].stem
    one_of_many = len(files) > 1 or split_alias(stem) is not None
    return (files[0].resolve().parent.name if one_of_many else stem) or "table"


def _beside(class_names: ClassNames, file: Path) -> ClassNames:
    if isinstance(class_names, str) and (file.parent / class_names).is_file():
        return str(file.parent / class_names)
    return class_names
