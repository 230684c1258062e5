"""What surrounds a run: the versions, the machine and the commit that its result may depend on."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
from typing import Any

_PACKAGES = [
    "clipx",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "pyarrow",
    "safetensors",
    "webdataset",
    "matplotlib",
]
_VARIABLES = [
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTHONHASHSEED",
    "SLURM_JOB_ID",
    "WORLD_SIZE",
]


def environment(processes: int) -> dict[str, Any]:
    """What a result may depend on: versions, platform, git commit of the working directory, cores.

    Args:
        processes: how many work on the run together.
    """
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": os.cpu_count(),
        "processes": processes,
        "directory": os.getcwd(),
        "executable": sys.executable,
        "packages": packages,
        "git": _git_state(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
