"""Table files as Arrow tables: Parquet, Arrow IPC (Feather), CSV and JSON Lines."""

import codecs
import csv
import glob
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from clipx.data.sources.captions import separator
from clipx.errors import ClipxError

ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")

# A Parquet file that unpacks to more than this many bytes is unpacked to disk and mapped from there.
_IN_MEMORY = 2**31


def table_files(paths: str | Sequence[str], argument: str, root: Path | None = None) -> list[Path]:
    """The files that a path, a pattern, a folder, or a list of them name, sorted within each.

    Args:
        paths: relative to ``root``, else to the working directory.
        argument: the user's argument, for errors.
        root: a folder.

    Raises:
        ClipxError: a path that names no file, or a file of unknown kind.
    """
    found: list[Path] = []
    for text in [paths] if isinstance(paths, str | os.PathLike) else list(paths):
        path = (root or Path()) / Path(text).expanduser()
        if path.is_dir():
            some = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
            if not some:
                raise ClipxError(f"{argument}={text} holds no table", hint=f"known: {', '.join(ENDINGS)}")
        elif path.is_file():
            some = [path]
        else:
            some = [
                Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()
            ]
            if not some:
                raise ClipxError(f"{argument}={text}: no such file", hint=f"looked in {root or Path.cwd()}")
        for file in some:
            if file.suffix.lower() not in ENDINGS:
                raise ClipxError(
                    f"{argument}={file}: {file.suffix or 'no ending'} is not known",
                    hint=f"known: {', '.join(ENDINGS)}",
                )
        found += some
    if not found:
        raise ClipxError(f"{argument} is empty", hint="a file, a pattern, or a list of files")
    return list(dict.fromkeys(found))


def column_names(path: Path) -> list[str]:
    """The columns of a table file, in order."""
    return list(read_table(path, rows=False).column_names)


def read_table(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    text: Sequence[str] = (),
    rows: bool = True,
    skipped: dict[str, int] | None = None,
) -> pa.Table:
    """Read a table file; Arrow files, and large Parquet files through a copy on disk, are mapped instead of
    read.

    Args:
        path: the file.
        columns: which to read; None for all.
        text: columns of a CSV file that are text even where they look like numbers.
        rows: False for the schema alone where the kind of file allows it.
        skipped: counts rows of a CSV file that have too few or too many cells; added to.

    Raises:
        ClipxError: the file cannot be read; for JSON Lines, naming the row.
    """
    ending = path.suffix.lower()
    try:
        if ending in {".parquet", ".pq"}:
            table = _parquet(path, columns, rows)
        elif ending in {".arrow", ".feather", ".ipc"}:
            table = _ipc(path, columns)
        elif ending in {".csv", ".tsv"}:
            table = _csv(path, text, rows, {} if skipped is None else skipped)
        else:
            table = _json(path)
    except (pa.ArrowException, OSError, EOFError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClipxError(f"{path} cannot be read: {reason}", hint="is the file complete?") from None
    return table if columns is None else table.select(list(columns))


def _parquet(path: Path, columns: Sequence[str] | None, rows: bool) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        schema, groups = file.schema_arrow, file.metadata
        if not rows:
            return schema.empty_table()
        size = sum(groups.row_group(index).total_byte_size for index in range(groups.num_row_groups))
        if size <= _IN_MEMORY:
            return file.read(columns=None if columns is None else list(columns))
    from datasets import Dataset

    # datasets keeps the unpacked copy in its cache, and later runs find it there.
    return Dataset.from_parquet(str(path)).data.table.replace_schema_metadata(schema.metadata)


def _ipc(path: Path, columns: Sequence[str] | None) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        # The stream format, which Hugging Face datasets writes.
        source.seek(0)
        return pa.ipc.open_stream(source).read_all()


def _csv(path: Path, text: Sequence[str], rows: bool, skipped: dict[str, int]) -> pa.Table:
    from pyarrow import csv as arrow_csv

    with open(path, "rb") as file:
        content = file.read(-1 if rows else 2**16)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    else:
        try:
            codecs.getincrementaldecoder("utf-8")().decode(content, final=rows)
            encoding = "utf-8"
        except UnicodeDecodeError:
            encoding = "latin-1"
    header = content[:65536].decode(encoding, "ignore").lstrip("\ufeff").split("\n", 1)[0].rstrip("\r")
    if not header.strip():
        return pa.table({})
    delimiter = "\t" if path.suffix.lower() == ".tsv" else separator(header)
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    if not rows:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    broken: list[int | None] = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        broken.append(row.number)
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(content),
        arrow_csv.ReadOptions(encoding=encoding, column_names=names, skip_rows=1),
        arrow_csv.ParseOptions(
            delimiter=delimiter,
            newlines_in_values=True,
            invalid_row_handler=skip,
        ),
        arrow_csv.ConvertOptions(column_types={name: pa.large_string() for name in text}),
    )
    if broken:
        skipped["broken row"] = skipped.get("broken row", 0) + len(broken)
    return table


def _json(path: Path) -> pa.Table:
    from pyarrow import json as arrow_json

    # The block must hold the longest line; lines hold long captions, or images as text.
    return arrow_json.read_json(path, arrow_json.ReadOptions(block_size=2**26))
