"""Shards of the WebDataset format, read as a stream."""

import importlib.util
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clipx.data import templates as prompts
from clipx.data.fields import UNLABELLED, Example
from clipx.data.images import MAX_PIXELS, open_image
from clipx.data.sources.columns import CAPTION, captions_of
from clipx.data.sources.examples import file_state, fingerprint
from clipx.data.sources.labels import ClassNames
from clipx.data.sources.shards import counted, expand_urls, is_local, read_shard, share, shuffled
from clipx.data.splits import check_fractions, check_split, expected_share, plan
from clipx.errors import BadSample, ClipxError, missing_extra

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img", "image")
CAPTION_KEYS = ("txt", "caption", "text", "json")
LABEL_KEYS = ("cls", "label")


class WebDataset:
    """Image-text pairs, or images with class numbers, in tar shards.

    Training shuffles shards by (seed, epoch) and samples within a buffer; other splits are read in order.
    Splits are shards of their own, or are cut by a stable hash of the sample's key.

    Args:
        urls: shards (``clipx.data.sources.shards.expand_urls``); None where the splits have shards of their
            own.
        split: "train", "validation", "test" or "all".
        train: shards of the training split.
        validation: shards of the validation split.
        test: shards of the test split.
        size: number of samples of this split; None to look for a sizes.json or _size beside the shards.
        shuffle: samples read ahead to draw from when training; 0 keeps the order of the shards, too.
        resampled: when training, each reader draws its shards with replacement, as many an epoch as would be
            its part, rather than share all of them out: no reader waits for the last shards of another, and
            of many shards an epoch leaves out about a third.
        image_key: file ending of the image; None for the usual ones.
        caption_key: file ending of the caption, or a field of the sample's json; None for the usual ones.
        label_key: file ending of the label, a class number or name; None for the usual ones.
        class_names: names of the classes: a known set, a file or a list; None takes a classnames.txt beside
            the shards or one folder up, where there is one.
        templates: prompt templates, or their name; None leaves the default.
        validation_fraction: part of the rest that is cut for validation where it has no shards, in [0, 1].
        test_fraction: part that is cut for test where it has no shards, in [0, 1].
        max_pixels: an image of more pixels is a bad sample.

    Attributes:
        size: number of samples if known; where a split is cut by hash from shards of known size, its
            expectation.

    Raises:
        ClipxError: webdataset is not installed, no such shard, or class names that cannot be read.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | None = None,
        split: str = "train",
        *,
        train: str | Sequence[str] | None = None,
        validation: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        size: int | None = None,
        shuffle: int = 1000,
        resampled: bool = False,
        image_key: str | None = None,
        caption_key: str | None = None,
        label_key: str | None = None,
        class_names: ClassNames = None,
        templates: str | Iterable[str] | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if importlib.util.find_spec("webdataset") is None:
            raise missing_extra("webdataset", "webdataset")
        self.split = check_split(split)
        check_fractions(validation_fraction, test_fraction)
        self._fractions: dict[str, Any] = {"validation": validation_fraction, "test": test_fraction}
        shards = {
            name: some
            for name, some in (("train", train), ("validation", validation), ("test", test))
            if some
        }
        if bool(urls) == bool(shards):
            raise ClipxError(
                f"data.urls and data.{next(iter(shards))} are both given"
                if urls
                else "webdataset needs data.urls, or data.train, data.validation and data.test",
                hint="for example data.urls=shards/{0000..0099}.tar",
            )
        self._given = tuple(shards)
        read, _ = plan(split, self._given, name="data=webdataset", **self._fractions)
        self._urls = (
            [url for part in read for url in expand_urls(shards[part], f"data.{part}")]
            if urls is None
            else expand_urls(urls, "data.urls")
        )
        total = counted(self._urls) if size is None else None
        self.size = size if total is None else round(total * expected_share(split, shards, **self._fractions))
        self.name = Path(self._urls[0]).resolve().parent.name if is_local(self._urls[0]) else "webdataset"
        self.templates = None if templates is None else prompts.templates(templates)
        names = class_names if class_names is not None else _names_beside(self._urls[0])
        self.classes = None if names is None else prompts.class_names(names)
        self._shuffle = shuffle if split == "train" else 0
        self._resampled = resampled and split == "train"
        self._image_keys = IMAGE_KEYS if image_key is None else (image_key.lower(),)
        self._caption_keys = CAPTION_KEYS if caption_key is None else (caption_key,)
        self._label_keys = LABEL_KEYS if label_key is None else (label_key.lower(),)
        self._max_pixels = max_pixels

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
        _, keep = plan(self.split, self._given, **self._fractions)
        reader = number = rank * workers + worker
        readers = world * workers
        urls = list(self._urls)
        if self._resampled:
            drawn = random.Random(f"drawn/{seed}/{epoch}/{reader}")
            urls = drawn.choices(urls, k=-(-len(urls) // readers))
            reader, readers = 0, 1  # these are its own
        elif self._shuffle:
            random.Random(f"shards/{seed}/{epoch}").shuffle(urls)
        samples = share(urls, reader, readers, lambda url: _kept(read_shard(url), keep))
        if self._shuffle > 1:
            samples = shuffled(samples, self._shuffle, random.Random(f"samples/{seed}/{epoch}/{number}"))
        for sample in islice(samples, skip, None):
            if isinstance(sample, BadSample):
                yield sample
                continue
            try:
                yield self._example(sample)
            except BadSample as bad:
                yield bad.with_traceback(None)

    def fingerprint(self) -> str:
        """A hash of the shards' names, sizes and times, and of the settings."""
        states = [(url, file_state(url) if is_local(url) else None) for url in self._urls]
        keys = (self._image_keys, self._caption_keys, self._label_keys)
        return fingerprint(
            "webdataset",
            self.split,
            states,
            self._given,
            self._fractions,
            keys,
            self.classes,
            self._max_pixels,
        )

    def _example(self, sample: dict[str, Any]) -> Example:
        key = sample["__key__"]
        content = next((sample[name] for name in self._image_keys if name in sample), None)
        if content is None:
            raise BadSample(
                f"no image: {key} has {', '.join(name for name in sample if not name.startswith('__'))}"
            )
        captions = self._captions(sample)
        label = self._label(sample)
        if not captions and label == UNLABELLED:
            raise BadSample(f"blank caption: {key} has neither a caption nor a label")
        return {
            "image": open_image(content, max_pixels=self._max_pixels),
            "captions": captions,
            "label": label,
            "id": f"{Path(sample['__url__']).stem}/{key}",
        }

    def _captions(self, sample: dict[str, Any]) -> list[str]:
        for name in self._caption_keys:
            if name in sample and name != "json":
                return captions_of(sample[name])
        if "json" not in sample:
            return []
        try:
            fields = json.loads(sample["json"])
        except ValueError:
            raise BadSample(f"damaged json: {sample['__key__']}") from None
        if not isinstance(fields, dict):
            return captions_of(fields)
        names = (*self._caption_keys, *CAPTION) if "json" in self._caption_keys else self._caption_keys
        return next((captions_of(fields[name]) for name in names if name in fields), [])

    def _label(self, sample: dict[str, Any]) -> int:
        content = next((sample[name] for name in self._label_keys if name in sample), None)
        if content is None or self.classes is None:
            return UNLABELLED
        text = content.decode("utf-8", "replace").strip()
        if text in self.classes:
            return self.classes.index(text)
        if not text.isdecimal() or int(text) >= len(self.classes):
            raise BadSample(
                f"label out of range: {sample['__key__']} has {text!r}, of {len(self.classes)} classes"
            )
        return int(text)


def _kept(samples: Iterable[Any], keep: Callable[[str], bool]) -> Iterator[Any]:
    return (sample for sample in samples if isinstance(sample, BadSample) or keep(sample["__key__"]))


def _names_beside(url: str) -> str | None:
    if not is_local(url):
        return None
    folder = Path(url).resolve().parent
    return next(
        (
            str(place / "classnames.txt")
            for place in (folder, folder.parent)
            if (place / "classnames.txt").is_file()
        ),
        None,
    )
