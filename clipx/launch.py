"""Hand work to Hydra: in this process, or as the jobs of a sweep to one of its launchers."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipx import config, config_errors
from clipx.errors import missing_extra

_PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}
"""Launchers, the plugin that brings each, and the extra that brings the plugin."""


def hydra(
    command: str,
    task: Callable[[Any], Any],
    overrides: Sequence[str],
    *,
    scratch: Path | None = None,
    config_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Compose a command's configuration and call ``task`` with it, as ``hydra.main`` does.

    Args:
        command: names the primary config.
        task: takes the composed configuration; a launcher may call it in another process.
        overrides: as ``config.prepare`` gives them.
        scratch: a folder makes it a sweep, whose launcher may write there; None for one call.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: the configuration is wrong.
        Exception: whatever ``task`` raises.
    """
    import hydra

    # Hydra's own files and logs are off: a run writes what there is to keep. The user's hydra.* come after.
    arguments = [
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        f"hydra.job.name=clipx-{command}",
        "hydra.run.dir=.",
    ]
    if scratch is not None:
        quoted = str(scratch).replace("\\", "\\\\").replace("'", "\\'")
        arguments += [f"hydra.sweep.dir='{quoted}'", "hydra.sweep.subdir=."]
    arguments += overrides
    if scratch is not None:
        arguments.append("--multirun")
    if config_dir:
        arguments += ["--config-dir", str(Path(config_dir).expanduser().absolute())]
    before = sys.argv
    sys.argv = ["clipx", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us instead of being printed
    try:
        with config_errors.translated(command, overrides, config_dir):
            decorated = hydra.main(
                version_base="1.3", config_path=str(config.conf_dir()), config_name=command
            )(task)
            config.with_architectures(decorated)
    finally:
        sys.argv = before


def jobs(
    command: str,
    task: Callable[[int], Any],
    *,
    launcher: str,
    number: int,
    settings: Sequence[str],
    scratch: Path,
    config_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Call ``task`` in several jobs of a Hydra launcher, with 0, 1, ..., and wait for all of them.

    Args:
        command: names the primary config.
        task: what a job does; travels to it pickled.
        launcher: ``joblib``, ``submitit_local``, ``submitit_slurm``, or one of a plugin of the user's.
        number: of jobs.
        settings: overrides of the launcher's own, ``hydra.launcher.partition=gpu``.
        scratch: a folder that the jobs can reach.
        config_dir: the user's own conf directory.

    Raises:
        ClipxError: the launcher's plugin is not installed, there is no such launcher, or its settings are
            wrong.
    """
    hydra(
        command,
        lambda composed: task(int(composed.job)),
        [*_launcher(launcher, number, settings), f"+job={','.join(map(str, range(number)))}"],
        scratch=scratch,
        config_dir=config_dir,
    )


def check_launcher(command: str, launcher: str, settings: Sequence[str] = ()) -> None:
    """Check that ``jobs`` could start.

    Raises:
        ClipxError: the launcher's plugin is not installed (the hint names the extra that brings it), there is
            no such launcher, or a setting of it is wrong.
    """
    plugin, extra = _PLUGINS.get(launcher, (None, ""))
    if plugin is not None and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        raise missing_extra(plugin.replace("_", "-"), extra)
    overrides = _launcher(launcher, 1, settings)
    with config_errors.translated(command, overrides, None):
        config.compose_prepared(command, overrides)


def _launcher(launcher: str, number: int, settings: Sequence[str]) -> list[str]:
    own = [f"hydra.launcher.n_jobs={number}"] if launcher == "joblib" else []
    return [f"hydra/launcher={launcher}", *own, *settings]
