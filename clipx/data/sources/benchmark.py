"""Published few-shot benchmarks: from a folder as CoOp lays it out, with its split file, or from the Hub."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data import templates as prompts
from clipx.data.fields import Example
from clipx.data.images import MAX_PIXELS, open_image
from clipx.data.sources.examples import file_state, fingerprint, one_by_one, position
from clipx.data.sources.folder import Folder
from clipx.data.sources.labels import ClassNames
from clipx.data.sources.paths import Root, locate_all
from clipx.data.splits import ALL, check_split, split_alias
from clipx.errors import BadSample, ClipxError

_PARTS = {"train": "train", "validation": "val", "test": "test"}
_NO_SPLITS = {"validation_fraction": 2 / 7, "test_fraction": 0.3}
"""CoOp's shares where nothing is given: 50% train, 20% validation, 30% test."""
_NO_VALIDATION = {"validation_fraction": 0.2}
"""CoOp's share where train and test are given."""

Item = tuple[str, int, str]
"""Path below the image folder, label, class name."""


def open_benchmark(
    name: str,
    split: str = "train",
    *,
    root: str | None = None,
    folder: str | None = None,
    images: str = "",
    path: str | None = None,
    splits: Mapping[str, str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    folder_names: ClassNames = None,
    hub_names: ClassNames = None,
    class_names: ClassNames = None,
    templates: str | Iterable[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """Open a benchmark: below ``root`` where that is given, else from the Hugging Face Hub.

    A folder is read by the first of these that it holds: a split file as CoOp publishes them
    (``split_zhou_*.json``), the lists of FGVC-Aircraft (``images_variant_train.txt``), class folders. Class
    folders without splits are cut by a stable hash: 50% train, 20% validation, 30% test. A folder of ImageNet
    may bring ``classnames.txt`` (folder, space, name).

    Args:
        name: of the benchmark.
        split: "train", "validation", "test" or "all".
        root: the benchmark's folder, or the one above it that holds all of them.
        folder: its name below such a root.
        images: where images lie below it.
        path: of the data set on the Hub.
        splits: what train, validation and test are called there.
        image_column: with the image, on the Hub; None for the usual.
        label_column: with the label, on the Hub; None for the usual.
        folder_names: names of the class folders: a known set or a mapping; None takes the folders' own.
        hub_names: names of the classes of the Hub's copy; None takes its own.
        class_names: names of the classes in label order, or a mapping, instead of either.
        templates: prompt templates, or their name.
        max_pixels: an image of more pixels is a bad sample.

    Raises:
        ClipxError: neither root nor path, nothing usable in the folder, or what the Hub's reader raises.
    """
    check_split(split)
    if root is None:
        if path is None:
            raise ClipxError(
                f"data.root must be given: {name} is not on the Hub", hint=f"data.root=DIR/{folder}"
            )
        from clipx.data.sources.huggingface import open_huggingface

        return open_huggingface(
            path,
            split,
            splits=splits,
            image_column=image_column,
            label_column=label_column,
            class_names=hub_names if class_names is None else class_names,
            templates=templates,
            max_pixels=max_pixels,
        )
    base = _base(root, folder)
    options: dict[str, Any] = {"class_names": class_names, "templates": templates, "max_pixels": max_pixels}
    listed = sorted(base.glob("split_zhou_*.json"))
    if listed:
        return ListedImages(name, base / images, read_split_file(listed[0]), split, listed[0].name, **options)
    if (base / "images_variant_train.txt").is_file():
        return ListedImages(name, base / images, read_variant_lists(base), split, "its lists", **options)
    given = class_names if class_names is not None else _folder_names(base) or folder_names
    inside = base / images if (base / images).is_dir() else base
    has_splits = any(split_alias(each.name) for each in inside.iterdir() if each.is_dir())
    own = {**options, "class_names": given, **(_NO_VALIDATION if has_splits else _NO_SPLITS)}
    source = Folder(str(inside), split, **own)
    source.name = name
    return source


def _base(root: str, folder: str | None) -> Path:
    above = Root(root).path
    return above / folder if folder and (above / folder).is_dir() else above


def _folder_names(base: Path) -> dict[str, str] | None:
    """Folder -> name from ``classnames.txt``."""
    path = base / "classnames.txt"
    if not path.is_file():
        return None
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split(" ", 1) for line in lines if " " in line]
    return {folder: name.strip() for folder, name in pairs} or None


def read_split_file(path: Path) -> dict[str, list[Item]]:
    """A split file of CoOp: items of train, validation and test.

    Raises:
        ClipxError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            part: [(str(place), int(label), str(name)) for place, label, name in content[key]]
            for part, key in _PARTS.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ClipxError(
            f"{path} is not a split file: {problem!r}",
            hint='{"train": [[path, label, class name], ...], "val": [...], "test": [...]}',
        ) from problem


def read_variant_lists(base: Path) -> dict[str, list[Item]]:
    """The lists of FGVC-Aircraft (``0034309 707-320``): items of train, validation and test.

    Raises:
        ClipxError: a list is missing, or a line names no class of ``variants.txt``.
    """
    try:
        variants = [line.strip() for line in (base / "variants.txt").read_text().splitlines() if line.strip()]
        number = {variant: label for label, variant in enumerate(variants)}
        found: dict[str, list[Item]] = {}
        for part, key in _PARTS.items():
            lines = (base / f"images_variant_{key}.txt").read_text().splitlines()
            pairs = [line.strip().split(" ", 1) for line in lines if line.strip()]
            found[part] = [(f"{image}.jpg", number[variant], variant) for image, variant in pairs]
        return found
    except (OSError, KeyError, ValueError) as problem:
        raise ClipxError(f"the lists of images in {base} cannot be read: {problem!r}") from problem


class ListedImages:
    """Images that a list assigns to splits, with labels and class names.

    Args:
        name: of the data.
        root: folder of the images; nothing outside of it is opened.
        items: of train, validation and test.
        split: one of them, or "all".
        where: what to call the list in an error.
        class_names: names in label order, or a mapping from the list's names; None takes the list's.
        templates: prompt templates, or their name.
        max_pixels: an image of more pixels is a bad sample.

    Raises:
        ClipxError: labels without a name or with two, or most images are missing.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        items: Mapping[str, Sequence[Item]],
        split: str,
        where: str,
        *,
        class_names: ClassNames = None,
        templates: str | Iterable[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name, self.split = name, split
        self.templates = None if templates is None else prompts.templates(templates)
        self.skipped: dict[str, int] = {}
        self._root, self._max_pixels = Root(root), max_pixels
        raw = _class_names(items, where)
        self.classes = (
            [prompts.class_name(each) for each in raw]
            if class_names is None
            else prompts.class_names(class_names, raw)
        )
        chosen = [item for part in (_PARTS if split == ALL else (split,)) for item in items[part]]
        if not chosen:
            raise ClipxError(f"{where} has no {split} images", hint="use a split that is there")
        places = locate_all(self._root, (place for place, _, _ in chosen), self.skipped, where)
        kept = [
            (place, label) for place, (_, label, _) in zip(places, chosen, strict=True) if place is not None
        ]
        self._paths = [place for place, _ in kept]
        self.labels = np.array([label for _, label in kept], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Example:
        index = position(index, len(self), self.name)
        path = self._paths[index]
        return {
            "image": open_image(self._root.path / path, max_pixels=self._max_pixels),
            "captions": [],
            "label": int(self.labels[index]),
            "id": path,
        }

    def examples(self, indices: Iterable[int]) -> list[Example | BadSample]:
        """Items by position, one example or ``BadSample`` each."""
        return one_by_one(self, indices)

    def fingerprint(self) -> str:
        """A hash of the split's paths with their sizes and times, of labels and class names."""
        states = [(path, file_state(self._root.path / path)) for path in self._paths]
        return fingerprint("listed", self.split, states, self.labels.tolist(), self.classes, self._max_pixels)


def _class_names(items: Mapping[str, Sequence[Item]], where: str) -> list[str]:
    found: dict[int, str] = {}
    for part in _PARTS:
        for _, label, name in items[part]:
            if found.setdefault(label, name) != name:
                raise ClipxError(f"{where} calls class {label} both {found[label]!r} and {name!r}")
    if sorted(found) != list(range(len(found))):
        missing = next(label for label in range(len(found) + 1) if label not in found)
        raise ClipxError(f"{where} has no image of class {missing}", hint="labels count from 0")
    names = [found[label] for label in range(len(found))]
    return [" ".join(name.split()) for name in names]
