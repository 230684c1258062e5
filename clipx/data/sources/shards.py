"""Shards of samples: finding them, reading tar files, sharing them out among readers, shuffling."""

import glob
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipx.errors import BadSample, ClipxError

Shard = TypeVar("Shard")

_SIZE_FILES = ("sizes.json", "_size", "__len__")


def expand_urls(urls: str | Sequence[str], argument: str) -> list[str]:
    """The shards that patterns name.

    Args:
        urls: brace patterns (``{0000..0099}.tar``), local patterns (``*.tar``), folders of .tar files,
            ``pipe:`` commands, or addresses that the package webdataset can open; one or a list.
        argument: the user's argument, for errors.

    Returns:
        One path or address a shard; patterns and folders are sorted.

    Raises:
        ClipxError: no shard, or a local one that is not there.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else list(urls):
        try:
            expanded = list(braceexpand(pattern))
        except ValueError:
            raise ClipxError(
                f"{argument}={pattern} has unbalanced braces", hint="for example shards/{0000..0099}.tar"
            ) from None
        for url in expanded:
            if not is_local(url):
                found.append(url)
                continue
            path = Path(url.removeprefix("file:")).expanduser()
            if path.is_dir():
                inside = sorted(
                    str(file) for file in path.iterdir() if file.name.endswith((".tar", ".tar.gz", ".tgz"))
                )
                if not inside:
                    raise ClipxError(f"{argument}={url} holds no .tar file")
                found += inside
            elif path.is_file():
                found.append(str(path))
            elif matches := sorted(glob.glob(str(path), recursive=True)):
                found += matches
            else:
                raise ClipxError(
                    f"{argument}: there is no shard {url}", hint=f"the working directory is {Path.cwd()}"
                )
    if not found:
        raise ClipxError(f"{argument} names no shard", hint="for example shards/{0000..0099}.tar")
    return list(dict.fromkeys(found))


def is_local(url: str) -> bool:
    """Whether a shard is a file of this machine, rather than a command or an address."""
    return not url.startswith("pipe:") and ("://" not in url or url.startswith("file:"))


def counted(urls: Sequence[str]) -> int | None:
    """The number of samples in shards, from ``sizes.json`` or a ``_size`` file beside them.

    Args:
        urls: shards. ``sizes.json`` maps a shard's file name to its number of samples; ``_size`` (or
            ``__len__``) holds the number of all shards of its folder.

    Returns:
        None where it is not told for every shard.
    """
    if not all(map(is_local, urls)):
        return None
    total = 0
    for folder in sorted({Path(url).parent for url in urls}):
        here = {Path(url).name for url in urls if Path(url).parent == folder}
        count = None
        for name in _SIZE_FILES:
            try:
                content = json.loads((folder / name).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and here <= content.keys():
                count = sum(int(content[shard]) for shard in here)
            elif isinstance(content, int) and here == {file.name for file in folder.glob("*.tar*")}:
                count = content
            if count is not None:
                break
        if count is None:
            return None
        total += count
    return total


def share(
    shards: Sequence[Shard], reader: int, readers: int, read: Callable[[Shard], Iterable[Any]]
) -> Iterator[Any]:
    """One reader's part of the samples: no sample goes to two readers, none is left out.

    With a shard or more for every reader they take turns at shards; with fewer, the readers of a shard take
    turns at its samples.

    Args:
        shards: in the order of this epoch, the same for every reader.
        reader: number of this one, in [0, readers).
        readers: how many there are.
        read: the samples of a shard, always in the same order, and ``BadSample`` for what could not be read.

    Yields:
        What ``read`` gives; a ``BadSample`` comes to one of a shard's readers only.
    """
    if len(shards) >= readers:
        mine, turn, turns = shards[reader::readers], 0, 1
    else:
        first = reader % len(shards)
        mine, turn, turns = (
            shards[first : first + 1],
            reader // len(shards),
            -(-(readers - first) // len(shards)),
        )
    for shard in mine:
        number = 0
        for sample in read(shard):
            if isinstance(sample, BadSample):
                if turn == 0:
                    yield sample
            else:
                if number % turns == turn:
                    yield sample
                number += 1


def shuffled(samples: Iterator[Any], size: int, draws: random.Random) -> Iterator[Any]:
    """Shuffle within a buffer: each sample is drawn at random from the ``size`` samples read ahead."""
    buffer: list[Any] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) >= size:
            place = draws.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            yield buffer.pop()
    draws.shuffle(buffer)
    yield from buffer


def read_shard(url: str) -> Iterator[dict[str, Any] | BadSample]:
    """The samples of a tar shard.

    Yields:
        Raw samples (``__key__``, ``__url__``, and bytes by file ending); at the end one ``BadSample`` where
        the shard could not be read on.
    """
    from webdataset.gopen import gopen
    from webdataset.handlers import reraise_exception
    from webdataset.tariterators import group_by_keys

    try:
        stream = gopen(url)
        try:
            # A sample whose files are not all there when the shard breaks is dropped with what follows it.
            yield from group_by_keys(_files(stream, url), handler=reraise_exception)
        finally:
            stream.close()
    except Exception as error:
        yield BadSample(f"corrupt shard: {url}: {str(error) or type(error).__name__}")


class _StrictTarInfo(tarfile.TarInfo):
    """Reports a damaged header; tarfile itself takes one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            # A block of zeros, or nothing at all, is an end.
            if type(error).__name__ not in {"InvalidHeaderError", "TruncatedHeaderError"}:
                raise
            raise tarfile.ReadError(f"damaged at byte {archive.offset}: {error}") from None


def _files(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            # Names with two underscores on both sides are webdataset's own notes.
            if member.isreg() and not (name.startswith("__") and name.endswith("__")):
                file = archive.extractfile(member)
                yield {"fname": name, "data": file.read() if file else b"", "__url__": url}
            # tarfile remembers every member it has seen, for ever.
            archive.members = []  # type: ignore[attr-defined]
