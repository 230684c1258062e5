"""A file of captions beside a folder of images: CSV, TSV, JSON Lines, or COCO's JSON."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipx.data.sources.columns import CAPTION, IMAGE, captions_of, find_column, need_column
from clipx.errors import ClipxError

NAMES = tuple(f"{stem}.{ending}" for stem in ("captions", "metadata") for ending in ("csv", "tsv", "jsonl"))
"""Files that are taken for captions where none is named (``metadata.csv`` is the habit of Hugging Face)."""


def read_captions(
    path: Path, image_column: str | None, caption_column: str | None
) -> list[tuple[str, list[str]]]:
    """Read which image has which captions.

    Args:
        path: a .csv, .tsv, .jsonl or .json file. CSV may be separated by commas, semicolons, tabs or bars,
            and be in UTF-8, UTF-16 or Latin-1. JSON holds COCO's ``images`` and ``annotations``, or a list of
            objects.
        image_column: column with the path; None to look for a common name.
        caption_column: column with the caption or captions; None to look for a common name.

    Returns:
        An image path and its captions a row, in the file's order. Captions are not blank, but may be none.

    Raises:
        ClipxError: unreadable or empty file, unknown ending, no such column.
    """
    where = path.name
    columns, rows = _read(path)
    image = need_column(
        find_column(columns, image_column, IMAGE, "image_column", where), "image_column", columns, where
    )
    others = [name for name in columns if name != image]
    caption = need_column(
        find_column(others, caption_column, CAPTION, "caption_column", where),
        "caption_column",
        columns,
        where,
    )
    return [(str(row.get(image) or ""), captions_of(row.get(caption))) for row in rows]


def separator(header: str) -> str:
    """The character that separates the columns of a header line: comma, semicolon, tab or bar."""
    return max(",;\t|", key=header.count)


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    ending = path.suffix.lower()
    try:
        text = _decoded(path.read_bytes())
        if ending in {".csv", ".tsv", ".txt"}:
            columns, rows = _separated(text, "\t" if ending == ".tsv" else None)
        elif ending in {".jsonl", ".ndjson"}:
            rows = list(_json_lines(text, path.name))
            columns = list(dict.fromkeys(key for row in rows for key in row))
        elif ending == ".json":
            rows = _json(json.loads(text), path.name)
            columns = list(dict.fromkeys(key for row in rows for key in row))
        else:
            raise ClipxError(
                f"captions file {path.name}: {ending or 'no ending'} is not known",
                hint="csv, tsv, jsonl, or COCO's json; data=table reads parquet and arrow",
            )
    except OSError as error:
        raise ClipxError(f"captions file {path} cannot be read: {error.strerror or error}") from None
    except (csv.Error, json.JSONDecodeError) as error:
        raise ClipxError(f"captions file {path.name} is damaged: {error}") from None
    if not rows:
        raise ClipxError(
            f"captions file {path.name} is empty", hint="a header line, then one image and caption a line"
        )
    return columns, rows


def _decoded(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # What spreadsheets of Western systems write; every byte means something, so it cannot fail.
        return content.decode("latin-1")


def _separated(text: str, delimiter: str | None) -> tuple[list[str], list[dict[str, Any]]]:
    header = text.split("\n", 1)[0]
    delimiter = delimiter or separator(header)
    # Long captions pass the default limit of 128 KiB a cell only by mistake: an unclosed quote swallows the
    # file.
    reader = csv.reader(io.StringIO(text.replace("\0", "")), delimiter=delimiter, skipinitialspace=True)
    lines = [line for line in reader if any(cell.strip() for cell in line)]
    if not lines:
        return [], []
    columns = [name.strip() for name in lines[0]]
    return columns, [dict(zip(columns, line, strict=False)) for line in lines[1:]]


def _json_lines(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ClipxError(f"captions file {name} is damaged in line {number}: {error}") from None
        if not isinstance(row, dict):
            raise ClipxError(
                f"captions file {name}: line {number} is not an object", hint='{"image": ..., "caption": ...}'
            )
        yield row


def _json(content: Any, name: str) -> list[dict[str, Any]]:
    if isinstance(content, dict) and isinstance(content.get("images"), list) and "annotations" in content:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        return [
            {"image": files.get(note.get("image_id"), ""), "caption": note.get("caption")}
            for note in content["annotations"]
        ]
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return content
    raise ClipxError(
        f"captions file {name} has an unknown layout",
        hint="COCO's images and annotations, or a list of objects",
    )
