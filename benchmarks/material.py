"""What the benchmarks run on: a model folder, JPEGs with captions, class folders, shards."""

import csv
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CAPTIONS = "captions.csv"
TRAIN_CSV = "open_clip.csv"


def write_model(folder: Path, name: str) -> Path:
    """Save a preset with random weights as an open_clip model folder."""
    import torch

    from clipx.models.loading import load

    torch.manual_seed(0)
    return load(name).save(folder)


def scenes(count: int, image_size: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Scenes as JPEG bytes (quality 90), with captions and label."""
    from PIL import Image

    from clipx.data.sources.scenes import Scenes

    source = Scenes(
        split="train", size=count, validation_size=2, test_size=2, image_size=image_size, **settings
    )
    for first in range(0, count, 64):
        for example in source.examples(list(range(first, min(first + 64, count)))):
            image = example["image"]
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90)
            yield {**example, "jpeg": file.getvalue(), "classes": source.classes}


def write_pairs(root: Path, count: int, image_size: int, rows: int) -> None:
    """Images under ``root/{train,val,test}``, their captions, and the same training pairs for open_clip.

    open_clip's file repeats the pairs up to ``rows`` rows: an epoch outlasts the benchmark, as it does on
    data of real size, and no contender is timed while it starts its loader anew.
    """
    table: list[tuple[str, str]] = []
    for number, example in enumerate(scenes(count + 16, image_size)):
        split = "train" if number < count else ("val", "test")[number % 2]
        path = root / split / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(example["jpeg"])
        table.append((f"{split}/{path.name}", example["captions"][0]))
    with (root / CAPTIONS).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *table])
    pairs = [(str(root / path), caption) for path, caption in table[:count]]
    with (root / TRAIN_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("filepath", "title"))
        writer.writerows(pairs[number % count] for number in range(rows))


def write_shards(root: Path, pairs: Path, shards: int = 4) -> None:
    """The pairs of ``pairs`` as tar shards, in the form that both readers of webdataset take."""
    with (pairs / CAPTIONS).open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))[1:]
    root.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        rows = [row for row in table if row[0].startswith(split)]
        parts = shards if split == "train" else 1
        for part in range(parts):
            with tarfile.open(root / f"{split}-{part:04d}.tar", "w") as tar:
                for path, caption in rows[part::parts]:
                    key = Path(path).stem
                    for name, content in (
                        (f"{key}.jpg", (pairs / path).read_bytes()),
                        (f"{key}.txt", caption.encode()),
                    ):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))


def write_classes(root: Path, count: int, image_size: int) -> list[str]:
    """One-object scenes under ``root/test/<class>``; returns the classes that occur, in folder order."""
    named: dict[str, list[bytes]] = {}
    for example in scenes(count, image_size, objects=[1, 1]):
        named.setdefault(example["classes"][example["label"]], []).append(example["jpeg"])
    for name, images in named.items():
        folder = root / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            (folder / f"{number:05d}.jpg").write_bytes(image)
    return sorted(named)
