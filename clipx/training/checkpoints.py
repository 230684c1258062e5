"""Checkpoints: folders written whole or not at all, the last few and the best kept."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipx import console
from clipx.errors import ClipxError
from clipx.files import sync
from clipx.models.clip import with_own_memory

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.pt"
STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d+)")


class Checkpoint(NamedTuple):
    """A checkpoint as it was saved: see ``Checkpoints.save``."""

    step: int
    tensors: dict[str, Tensor]
    training: dict[str, Any]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is a folder ``step-00000300`` with ``model.safetensors`` (model and objectives),
    ``training.pt`` (optimizer, average, scaler; tensors and plain values only) and ``state.json``. It is
    written under another name and renamed when it is complete on disk, so a killed writer or a full disk
    leaves the previous one as it was.

    Args:
        folder: where they are.
        keep: how many of the newest to keep, at least 1; the best is kept besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        names = [
            _NAME.fullmatch(path.name) for path in self.folder.iterdir() if (path / STATE_FILE).is_file()
        ]
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self, step: int, tensors: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any]
    ) -> Path:
        """Write a checkpoint, then remove those no longer kept and what killed writers left.

        Args:
            step: optimizer steps done.
            tensors: state of model and objectives.
            training: state of optimizer, average and scaler.
            state: plain values; ``best`` (a number, higher is better, or None) decides which one is kept as
                the best.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        with written_whole(self.path(step)) as folder:
            save_file(with_own_memory(tensors), folder / MODEL_FILE, metadata={"format": "pt"})
            torch.save(training, folder / TRAINING_FILE)
            (folder / STATE_FILE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        self._prune(step)
        return self.path(step)

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint; its tensors are on the CPU.

        Raises:
            ClipxError: it cannot be read.
        """
        folder = self.path(step)
        try:
            tensors = load_file(folder / MODEL_FILE)
            training = torch.load(folder / TRAINING_FILE, map_location="cpu", weights_only=True)
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except Exception as error:  # truncated safetensors, zip and JSON raise types of their own
            raise ClipxError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
        return Checkpoint(step, tensors, training, state)

    def newest(self, aloud: bool = True) -> Checkpoint | None:
        """The newest checkpoint that can be read, None where there is none.

        Args:
            aloud: warn of damaged ones that are passed over.
        """
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ClipxError as error:
                if aloud:
                    console.warn(f"{error.message}; going back to the one before it")
        return None

    def best(self) -> int | None:
        """The step whose ``best`` is highest (the earliest of equals), None where none was evaluated."""
        scores = {step: self._score(step) for step in self.steps()}
        scored = {step: score for step, score in scores.items() if score is not None}
        return max(scored, key=lambda step: (scored[step], -step)) if scored else None

    def _score(self, step: int) -> float | None:
        try:
            return json.loads((self.path(step) / STATE_FILE).read_text(encoding="utf-8")).get("best")
        except (OSError, ValueError, AttributeError):
            return None

    def _prune(self, saved: int) -> None:
        # What is newer than the one just saved was damaged when the run was resumed, else the run would have
        # gone on from there; it must not count as one of the newest.
        until = [step for step in self.steps() if step <= saved]
        kept = {*until[-self.keep :], self.best()}
        for step in self.steps():
            if step > saved or step not in kept:
                _remove(self.path(step))
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``folder`` when the block ends and all of it is on disk, else vanishes.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.iterdir(), partial]:
            sync(path)
        if folder.exists():
            _remove(folder)
        os.replace(partial, folder)
        sync(folder.parent)
    except (SafetensorError, RuntimeError) as error:  # how safetensors and torch tell of an OSError
        raise _as_os_error(error, partial) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder so that no moment shows a part of it."""
    aside = folder.parent / f".{folder.name}.removed"
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _as_os_error(error: Exception, folder: Path) -> OSError:
    full = "os error 28" in str(error) or shutil.disk_usage(folder).free < 1 << 16
    code = errno.ENOSPC if full else errno.EIO
    return OSError(code, os.strerror(code) if full else str(error).splitlines()[0], str(folder))
