"""The most memory that a piece of work held."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

_MB = 1024.0**2


class PeakMemory:
    """Measures from its making on: of the device where torch uses CUDA, else of this process.

    Linux can start a process's high-water mark anew. Elsewhere the mark is that of the whole process so far,
    an upper bound for the piece of work.
    """

    def __init__(self) -> None:
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> float | None:
        """The peak so far, in MB of 2^20 bytes; None where it cannot be known."""
        cuda = _cuda()  # asked again: the work itself may have been the first to use the device
        return float(cuda.max_memory_allocated()) / _MB if cuda is not None else _resident()


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _resident() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MB if sys.platform == "darwin" else peak / 1024
    return None
