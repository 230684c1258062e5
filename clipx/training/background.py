"""Write checkpoints while training goes on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from clipx.training.checkpoints import Checkpoints


class CheckpointWriter:
    """Writes checkpoints in a thread, from a copy that later steps do not touch; one at a time.

    The copy lives in host memory of the size of a checkpoint, which is kept for the next one: filling
    memory again is many times faster than getting it. As a context manager it waits at the end for what is
    being written.

    Args:
        checkpoints: where they go.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._copy: Any = None
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: Exception | None = None

    def write(
        self, step: int, tensors: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Take a copy and write it in the background; the arguments are those of ``Checkpoints.save``.

        Raises:
            CannotWrite: the one before could not be written.
        """
        self.wait()
        self._copy = host_copy([tensors, training, state], self._copy)
        self._step = step
        self._thread = threading.Thread(target=self._save, args=(step, *self._copy), name="checkpoint")
        self._thread.start()

    def write_now(
        self, step: int, tensors: dict[str, Tensor], training: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Write and return when it is on disk, without a copy.

        Raises:
            CannotWrite: it, or the one before, could not be written.
        """
        self.wait()
        try:
            self.checkpoints.save(step, tensors, training, state)
        except OSError as error:
            raise CannotWrite(step, error) from error

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            CannotWrite: what was being written could not be; said once.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        self._raise()

    def check(self) -> None:
        """Look whether something went wrong, without waiting.

        Raises:
            CannotWrite: what was being written could not be; said once.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def _save(self, step: int, tensors: dict[str, Tensor], training: dict[str, Any], state: Any) -> None:
        try:
            self.checkpoints.save(step, tensors, training, state)
        except Exception as error:  # of any kind: it is raised where someone hears of it
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if isinstance(error, OSError):
            raise CannotWrite(self._step, error) from error
        if error is not None:
            raise error

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:  # else what ended the training is what to tell
                raise


class CannotWrite(Exception):
    """The checkpoint of a step could not be written, for the reason in ``error``."""

    def __init__(self, step: int, error: OSError) -> None:
        super().__init__(f"the checkpoint of step {step}: {error.strerror or error}")
        self.step = step
        self.error = error


def host_copy(value: Any, into: Any = None) -> Any:
    """A copy of plain values and tensors, on the CPU, which shares no memory with them.

    Args:
        value: dictionaries, lists and tuples of tensors and plain values.
        into: an earlier copy; where a tensor of the same shape and kind stands in the same place, its memory
            is filled again.
    """
    if isinstance(value, Tensor):
        fits = isinstance(into, Tensor) and (into.shape, into.dtype, into.stride()) == (
            value.shape,
            value.dtype,
            value.stride(),
        )
        if not fits:
            into = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=value.is_cuda)
        return into.copy_(value.detach())
    if isinstance(value, dict):
        before = into if isinstance(into, dict) else {}
        return {key: host_copy(each, before.get(key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        known = list(into) if isinstance(into, (list, tuple)) else []
        known += [None] * (len(value) - len(known))
        copies = [host_copy(each, known[place]) for place, each in enumerate(value)]
        return tuple(copies) if isinstance(value, tuple) else copies
    return value
