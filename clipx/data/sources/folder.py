"""Folders of images: one folder a class, or images with a file of captions."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipx.data import templates as prompts
from clipx.data.fields import UNLABELLED, Example
from clipx.data.images import MAX_PIXELS, open_image
from clipx.data.sources.captions import NAMES, read_captions
from clipx.data.sources.examples import file_state, fingerprint, one_by_one, position
from clipx.data.sources.paths import Root, locate_all
from clipx.data.splits import check_split, empty_split, plan, split_alias
from clipx.errors import BadSample, ClipxError


class Folder:
    """Images below a root folder.

    Without captions, the folder an image lies in is its class: ``root/<class>/...``, or
    ``root/<train|val|test>/<class>/...``; below a class folder images may be nested. With captions, images
    lie anywhere below the root, and a file names them. ``captions.csv`` or ``metadata.csv`` (also .tsv,
    .jsonl) at the root are found by themselves where there are no class folders.

    Folders train, val (valid, validation, dev) and test at the root are honoured as splits; what is missing
    is cut from train by a stable hash of the image's path. Images without any of these folders are all split
    by hash.

    Args:
        root: the folder.
        split: "train", "validation", "test" or "all".
        captions: captions file, relative to the root or the working directory; None for class folders.
        image_column: its column with the image's path, relative to the root; None to look for a common name.
        caption_column: its column with the caption; None to look for a common name.
        class_names: names of the classes: a known set, a file (also relative to the root), a list in the
            order of the sorted folders, or a mapping from folder to name; None takes the folders' names.
        templates: prompt templates, or their name; None leaves the default.
        validation_fraction: part of the rest that is cut for validation where the data has none, in [0, 1].
        test_fraction: part that is cut for test where the data has none, in [0, 1].
        max_pixels: an image of more pixels is a bad sample.

    Attributes:
        skipped: what was left out at construction, by reason.

    Raises:
        ClipxError: no such folder, no images, fewer than two classes, or captions that do not fit.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        *,
        captions: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        class_names: str | Sequence[str] | dict[str, str] | None = None,
        templates: str | Iterable[str] | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_split(split)
        self.split = split
        self.templates = None if templates is None else prompts.templates(templates)
        self.skipped: dict[str, int] = {}
        self.classes: list[str] | None = None
        self._root = Root(root)
        self.name = self._root.path.name or "folder"
        self._max_pixels = max_pixels

        if captions is None:
            files = list(self._root.images(self.skipped))
            if not files:
                raise ClipxError(
                    f"data.root={root} holds no images{self._skipped_text()}", hint=self._contents()
                )
            given, inner = _given_splits(files)
            folders = sorted({path.split("/", 1)[0] for path in inner if "/" in path})
            beside = next((name for name in NAMES if (self._root.path / name).is_file()), None)
            if len(folders) < 2 and beside is not None:
                captions = beside
        if captions is not None:
            self.skipped = {}
            paths, texts = self._captioned(self._captions_file(captions), image_column, caption_column)
            given, inner = _given_splits(paths)
            labels = np.full(len(paths), UNLABELLED)
        else:
            if len(folders) < 2:
                found = f"only one, {folders[0]!r}" if folders else "none"
                raise ClipxError(
                    f"classification needs two class folders or more in data.root={root}, there is {found}",
                    hint="root/<class>/image.jpg; or name a captions file: data.captions=captions.csv",
                )
            paths, texts = files, None
            loose = [index for index, path in enumerate(inner) if "/" not in path]
            if loose:
                self.skipped["not in a class folder"] = len(loose)
            number = {folder: index for index, folder in enumerate(folders)}
            labels = np.array(
                [number.get(path.split("/", 1)[0], UNLABELLED) if "/" in path else -1 for path in inner]
            )
            self.classes = self._class_names(class_names, folders)

        usable = np.array([part != "other" for part in given]) if texts is not None else labels != UNLABELLED
        if texts is not None and not usable.all():
            self.skipped["in no split's folder"] = int((~usable).sum())
        read, keep = plan(
            split,
            set(given) - {""},
            validation=validation_fraction,
            test=test_fraction,
            name=f"data.root={root}",
        )
        chosen = [
            index
            for index, path in enumerate(paths)
            if usable[index] and (not read or given[index] in read) and keep(path)
        ]
        if not chosen:
            raise empty_split(split, int(usable.sum()), f"data.root={root}")
        # Arrow columns: millions of Python strings would be copied into every loader process, one page at a
        # time.
        self._paths = pa.array([paths[index] for index in chosen], pa.large_string())
        self._captions = None if texts is None else pa.array([texts[index] for index in chosen])
        self._labels = labels[chosen].astype(np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        index = position(index, len(self), self.name)
        path = self._paths[index].as_py()
        return {
            "image": open_image(os.path.join(self._root.path, path), max_pixels=self._max_pixels),
            "captions": [] if self._captions is None else self._captions[index].as_py(),
            "label": int(self._labels[index]),
            "id": path,
        }

    def examples(self, indices: Iterable[int]) -> list[Example | BadSample]:
        """Items by position, one example or ``BadSample`` each."""
        return one_by_one(self, indices)

    @property
    def labels(self) -> np.ndarray:
        """The label of every item, int64 [N], without opening an image."""
        return self._labels

    def fingerprint(self) -> str:
        """A hash of the split's paths with their sizes and times, of labels, captions and class names."""
        states = [(path, file_state(self._root.path / path)) for path in self._paths.to_pylist()]
        captions = None if self._captions is None else self._captions.to_pylist()
        return fingerprint(
            "folder", self.split, states, self._labels.tolist(), captions, self.classes, self._max_pixels
        )

    def _captions_file(self, captions: str) -> Path:
        given = Path(captions).expanduser()
        for path in (self._root.path / given, given):
            if path.is_file():
                return path
        raise ClipxError(
            f"data.captions={captions} does not exist", hint=f"looked in {self._root.path} and {Path.cwd()}"
        )

    def _captioned(
        self, file: Path, image_column: str | None, caption_column: str | None
    ) -> tuple[list[str], list[list[str]]]:
        rows = read_captions(file, image_column, caption_column)
        spoken = [row for row in rows if row[1]]
        if len(spoken) < len(rows):
            self.skipped["blank caption"] = len(rows) - len(spoken)
        if not spoken:
            raise ClipxError(
                f"every caption in {file.name} is blank", hint="is data.caption_column the right one?"
            )
        places = locate_all(self._root, (image for image, _ in spoken), self.skipped, file.name)
        grouped: dict[str, list[str]] = {}
        for place, (_, captions) in zip(places, spoken, strict=True):
            if place is not None:
                grouped.setdefault(place, []).extend(captions)
        return list(grouped), list(grouped.values())

    def _class_names(
        self, given: str | Sequence[str] | dict[str, str] | None, folders: list[str]
    ) -> list[str]:
        if given is None:
            return [prompts.class_name(folder) for folder in folders]
        if isinstance(given, str) and (self._root.path / given).is_file():
            given = str(self._root.path / given)
        return prompts.class_names(given, folders)

    def _skipped_text(self) -> str:
        return "".join(f", {count} skipped: {reason}" for reason, count in self.skipped.items())

    def _contents(self) -> str:
        names = sorted(os.listdir(self._root.path))
        return (
            f"it holds: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            if names
            else "the folder is empty"
        )


def _given_splits(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read splits off the first folder of every path.

    The folders are splits where all of them have a split's name, or where train and another split are among
    them; anything else beside those is then left out. A lone class folder called "train" among others stays a
    class.

    Returns:
        A split a path ("" without splits, "other" for what belongs to none), and the paths below the split's
        folder.
    """
    first = {path.split("/", 1)[0] for path in paths if "/" in path}
    meant = {split_alias(name) for name in first} - {None}
    honoured = bool(first) and (all(map(split_alias, first)) or ("train" in meant and len(meant) > 1))
    if not honoured:
        return [""] * len(paths), list(paths)
    given, inner = [], []
    for path in paths:
        top, _, rest = path.partition("/")
        split = split_alias(top) if rest else None
        given.append(split or "other")
        inner.append(rest if split else os.path.basename(path))
    return given, inner
