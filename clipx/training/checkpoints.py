"""Checkpoints: folders written whole or not at all, the last few and the best kept."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipx.errors import ClipxError

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.pt"
STATE_FILE = "state.json"


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is a folder ``step-00000300`` with ``model.safetensors`` (model and objectives), ``training.pt``
    (optimizer, average, scaler; tensors and plain values only) and ``state.json``. It is written under another name and
    renamed when it is complete on disk, so a killed writer or a full disk leaves the previous one as it was.

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
        names = [path.name for path in self.folder.iterdir() if (path / STATE_FILE).is_file()]
        return sorted(int(name.removeprefix("step-")) for name in names if name.startswith("step-"))

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, tensors: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove those no longer kept.

        Args:
            step: optimizer steps done.
            tensors: state of model and objectives.
            training: state of optimizer, average and scaler.
            state: plain values; ``best`` (a number, higher is better, or None) decides which one is kept as the best.

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        final = self.path(step)
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            detached = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(detached, partial / MODEL_FILE, metadata={"format": "pt"})
            torch.save(training, partial / TRAINING_FILE)
            (partial / STATE_FILE).write_text(json.dumps({"step": step, **state}), encoding="utf-8")
            for path in partial.iterdir():
                _sync(path)
            if final.exists():  # the same step again after a resume
                shutil.rmtree(final)
            os.replace(partial, final)
            _sync(self.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._prune()
        return final

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """Tensors, training state and plain state of a checkpoint.

        Raises:
            ClipxError: it cannot be read.
        """
        folder = self.path(step)
        try:
            tensors = load_file(folder / MODEL_FILE)
            training = torch.load(folder / TRAINING_FILE, map_location="cpu", weights_only=True)
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        except Exception as error:  # truncated safetensors, zip and JSON raise types of their own
            raise ClipxError(f"{folder} cannot be read: {error}") from error
        return tensors, training, state

    def newest(self) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Any], dict[str, Any]]]:
        """Readable checkpoints, newest first; damaged ones are passed over."""
        for step in reversed(self.steps()):
            with contextlib.suppress(ClipxError):
                yield step, *self.load(step)

    def best(self) -> int | None:
        """The step whose ``best`` is highest (the earliest of equals), None where none was evaluated."""
        scores = {step: self._state(step).get("best") for step in self.steps()}
        scored = {step: score for step, score in scores.items() if score is not None}
        return max(scored, key=lambda step: (scored[step], -step)) if scored else None

    def _state(self, step: int) -> dict[str, Any]:
        try:
            return json.loads((self.path(step) / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _prune(self) -> None:
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best()}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
