"""One command as several processes of this machine: ``--processes``, and what it takes to be one of them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from clipx import console, slurm
from clipx.errors import ClipxError
from clipx.machine import own_cores

_ACCELERATE = "ACCELERATE_MIXED_PRECISION"
"""What ``accelerate launch`` tells every process that it starts."""
_PLACES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where the launchers that Accelerate knows write a process's place."""
_BY_FILE = {"FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"}
"""Kinds of an Accelerate configuration that say more than how many processes."""
_FOR_A_CHECKPOINT = 180
"""Seconds from a signal, or the end of one process, to the SIGKILL of those that are left."""
_PATIENCE = 10.0
"""Seconds that a process has to end by itself when its launcher has."""


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take the place that a launcher has given this process; nothing in a process that is alone.

    What Slurm says becomes torchrun's variables; threads are counted so that the processes of a machine share
    its cores; when torchrun ends, however that happens, this process gets a SIGTERM. Called before torch is
    loaded, which reads some of it only then.
    """
    found = slurm.variables(environment)
    environment.update(found)
    if found:
        environment.setdefault("OMP_NUM_THREADS", str(own_cores()))
    if "TORCHELASTIC_RUN_ID" in environment:
        _end_with_launcher()


def _end_with_launcher() -> None:
    parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGTERM)


def start(argv: Sequence[str], processes: int, *, debug: bool = False) -> int:
    """Run ``clipx`` with these arguments in several processes of this machine, through Accelerate's launcher.

    One process a GPU; without any, processes that share the cores. An Accelerate configuration file at the
    default place is honoured for what it says of FSDP or DeepSpeed. Signals go to all processes.

    Args:
        argv: arguments behind ``clipx``.
        processes: 2 or more.
        debug: let the launcher say what it does.

    Returns:
        The exit code of the process that was the first to fail; 128 + the number of the signal that ended the
        launch.

    Raises:
        ClipxError: fewer GPUs than processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, own_cores() // processes)))
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    said = _configured()
    kind = str(getattr(said, "distributed_type", "")).removeprefix("DistributedType.")
    devices = 0 if _flag("ACCELERATE_USE_CPU") or getattr(said, "use_cpu", False) else _devices()
    if 0 < devices < processes:
        raise ClipxError(
            f"--processes {processes} asks for as many GPUs, and this machine has {devices}",
            hint=f"--processes {devices}; or ACCELERATE_USE_CPU=1 for processes that share the cores",
        )
    if not devices:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    arguments = ["--num_machines", "1", "--num_processes", str(processes), "--main_process_port", "0"]
    arguments += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the run's configuration says it
    arguments += [] if kind in _BY_FILE else ["--multi_gpu"]  # the launcher's word for one process a rank
    parsed = launch_command_parser().parse_args([*arguments, "--module", "clipx", *argv])
    parsed.shutdown_timeout = _FOR_A_CHECKPOINT
    if not debug:
        _hush("torch.distributed", "accelerate")
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        console.error(f"process {rank} of {processes} was killed by {name}")
        return 128 - failure.exitcode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    finally:
        _end_the_rest()
    return 0


def _hush(*names: str) -> None:
    """Leave what there is to say to the processes that are started."""
    import torch.distributed.run  # noqa: F401 - its loggers are made, with a level, as it is loaded

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(names):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def asked_of_accelerate() -> int:
    """How many processes ``accelerate launch`` was asked for where it has started this one alone, else 1.

    Without GPUs it leaves starting them to MPI, and without that starts one, which is not told of the others.

    Raises:
        ClipxError: it was to be on several machines.
    """
    several = _ACCELERATE in os.environ and "MASTER_ADDR" in os.environ
    if not several or any(name in os.environ for name in _PLACES):
        return 1
    import psutil

    words = psutil.Process().parent().cmdline()
    names = [Path(word).name for word in words]
    for place, name in enumerate(names):
        if name in ("accelerate-launch", "launch", "accelerate.commands.launch"):
            _end_with_launcher()  # it hands no signal on
            return _number_of(words[place + 1 :])
    return 1


def _number_of(arguments: Sequence[str]) -> int:
    from accelerate.commands.launch import launch_command_parser

    asked: Any = launch_command_parser().parse_args(arguments)
    said = _configured(asked.config_file) if asked.config_file or not asked.cpu else None
    if (asked.num_machines or getattr(said, "num_machines", 1)) > 1:
        raise ClipxError(
            "without GPUs, accelerate launch starts processes on several machines only through MPI",
            hint="torchrun --nnodes ... -m clipx ... on every machine, or srun",
        )
    return asked.num_processes or getattr(said, "num_processes", 1)


def _configured(file: str | None = None) -> Any:
    """Accelerate's configuration from this file, else from the default place, else None."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    found = file or default_config_file
    return load_config_from_file(found) if Path(found).is_file() else None


def _devices() -> int:
    """Devices whose processes have a backend of their own to exchange tensors; 0 where that is gloo."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    accelerator: Any = getattr(torch, "accelerator", None)  # torch 2.6 and later
    found = accelerator.current_accelerator() if accelerator is not None else None
    return 0 if found is None or found.type in ("cpu", "mps") else accelerator.device_count()


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def _end_the_rest() -> None:
    """End what the launcher left behind, as a second Ctrl-C makes it do."""
    import psutil

    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=_PATIENCE)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
