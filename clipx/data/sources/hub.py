"""Loading what the library ``datasets`` can load: clear errors, and no waiting for a dead network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipx.data.splits import split_alias
from clipx.errors import ClipxError, did_you_mean

READERS = ("imagefolder", "parquet", "arrow", "csv", "json", "webdataset", "lance", "text")
"""Readers of files that datasets knows by name; with one of them as path, nothing is looked up on the Hub."""

_PROBE_SECONDS = 5


def load(
    path: str, splits: Mapping[str, str] | None, streaming: bool, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load the parts of a data set.

    Returns:
        The parts by their own names ("" for a data set without parts), and which of them is train,
        validation, test.
    """
    import datasets

    wanted = {split: part for split, part in (splits or {}).items() if part}
    for split in wanted:
        if split not in {"train", "validation", "test"}:
            raise ClipxError(
                f"data.splits has {split!r}", hint=did_you_mean(split, ("train", "validation", "test"))
            )
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ClipxError(f"data.path={path} is a file", hint=f"data=table data.path={path}")
    if not folder.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ClipxError(f"data.path={path} does not exist", hint=f"the working directory is {Path.cwd()}")
    saved = folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    named: dict[str, Any] = {}
    try:
        if saved:
            loaded: Any = datasets.load_from_disk(str(folder))
            if streaming:
                loaded = _streamed(loaded)
        else:
            place = str(folder) if folder.is_dir() else path
            remote = not folder.is_dir() and path not in READERS
            with _network(remote or "://" in str(arguments.get("data_files", ""))):
                if wanted:
                    for part in wanted.values():
                        named[part] = datasets.load_dataset(
                            place, split=part, streaming=streaming, **arguments
                        )
                    return named, wanted
                loaded = datasets.load_dataset(place, streaming=streaming, **arguments)
    except ClipxError:
        raise
    # datasets raises whatever the layer below it raised; all of it is about the data that the user named.
    except Exception as error:
        raise ClipxError(
            f"data.path={path} cannot be loaded: {first_line(error)}", hint=_hint(error, path, arguments)
        ) from None
    if not isinstance(loaded, dict):
        if wanted:
            raise ClipxError(f"data.path={path} has no splits, so data.splits has nothing to name")
        return {"": loaded}, {}
    parts = dict(loaded)
    for part in wanted.values():
        if part not in parts:
            raise ClipxError(f"data.path={path} has no split {part!r}", hint=did_you_mean(part, parts))
    given = wanted or {alias: part for part in parts if (alias := split_alias(part)) is not None}
    if not given and len(parts) == 1:
        return {"": next(iter(parts.values()))}, {}
    if not given:
        raise ClipxError(
            f"data.path={path} has the splits {', '.join(parts)}",
            hint=f"data.splits.test={next(iter(parts))} names one",
        )
    return {part: parts[part] for part in given.values()}, given


def _streamed(loaded: Any) -> Any:
    if isinstance(loaded, dict):
        return {part: _shards(data) for part, data in loaded.items()}
    return _shards(loaded)


def _shards(data: Any) -> Any:
    # Several readers take turns at shards; more than these would only be small.
    return data.to_iterable_dataset(num_shards=max(1, min(64, len(data) // 1000)))


@contextmanager
def _network(needed: bool) -> Iterator[None]:
    """Where the Hub does not answer, work offline at once instead of trying again for minutes.

    datasets then uses what it has in its cache. ``HF_HUB_OFFLINE`` is obeyed.
    """
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if not needed or constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:
        before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        return
    yield


def _hint(error: Exception, path: str, arguments: dict[str, Any]) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if any(
        word in text
        for word in ("offline", "connection", "couldn't reach", "cannot reach", "timed out", "hub")
    ):
        return (
            "the Hub cannot be reached or has no such data set: check the name and the network,"
            " or fetch it elsewhere and name its folder"
        )
    if "script" in text:
        return "clipx never runs code that a data set brings; look for a version in Parquet"
    if "config" in text and "name" not in arguments:
        return "data.name=... picks a configuration"
    return f"does datasets.load_dataset({path!r}) work in Python?"


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
