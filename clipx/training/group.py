"""The processes of one launch: how they find each other, agree, and speak with one voice."""

import datetime
import hashlib
import os
import time
from typing import Any

import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from clipx.errors import ClipxError
from clipx.run import is_main_process, launched
from clipx.training.distributed import world

_WAITING = 1800.0
"""Seconds that the processes of a launch wait for each other."""
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "recv, got 0 bytes")
"""What gloo, NCCL and the store say when a process at the other end is gone."""


def join_launch() -> PartialState:
    """Form the group of the processes that were launched together; collective, once a process.

    Without a device that Accelerate has a backend for, the group is gloo's. There Accelerate takes every
    process for the only one unless it is told that the CPU is meant: each would train on its own.

    Raises:
        ClipxError: the others did not come.
    """
    met = _meet()  # held until torch has a hold of its own on the store
    meant = os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes", "on"}
    try:
        state = PartialState(cpu=meant)
        if state.num_processes < launched():
            PartialState._reset_state()
            state = PartialState(cpu=True)
    except (dist.DistError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ClipxError(
            f"the {launched()} processes of this launch did not find each other: {reason}",
            hint="are all of them started, and is MASTER_ADDR the first one's machine?",
        ) from error
    if state.num_processes < launched():
        raise ClipxError(
            f"{launched()} processes were launched, and {state.num_processes} are in the group",
            hint="launch with --processes, torchrun, accelerate launch or srun",
        )
    del met
    return state


def _meet() -> dist.TCPStore | None:
    """Wait until all processes of the launch are here, so that a signal can end the waiting.

    In the waiting of torch's own rendezvous Python's handlers of signals do not run: where another process
    died on its way, this one would outlive the SIGTERM of their launcher.
    """
    if launched() == 1 or dist.is_initialized() or "MASTER_ADDR" not in os.environ:
        return None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keeps = os.environ.get("RANK") == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store, key, until = None, f"clipx/met/{attempt}", time.monotonic() + _WAITING
    while store is None or store.add(key, 0) < launched():
        if store is None:
            store = _store(keeps)
            if store is not None:
                store.add(key, 1)
        if time.monotonic() > until:
            met = 0 if store is None else store.add(key, 0)
            raise ClipxError(
                f"{met} of the {launched()} processes of this launch came within {_WAITING / 60:.0f} minutes",
                hint="are all of them started, and is MASTER_ADDR the first one's machine?",
            )
        time.sleep(0.02)
    return store


def _store(keeps: bool) -> dist.TCPStore | None:
    """The store at the address where the launch meets; None where nobody keeps it yet."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    patience = datetime.timedelta(seconds=300 if keeps else 1)
    try:
        return dist.TCPStore(
            address, port, None, keeps, timeout=patience, wait_for_workers=False, multi_tenant=True
        )
    except dist.DistError:
        if keeps:
            raise
        return None


def told(value: Any) -> Any:
    """The value of the first process, in all of them; collective.

    Args:
        value: anything that can be pickled; that of the other processes does not matter.
    """
    if world()[1] == 1:
        return value
    (common,) = broadcast_object_list([value])
    return common


def first_to_say(message: str) -> bool:
    """Whether this process is the first of the launch that has this to say; each message is said once."""
    if launched() == 1:
        return True
    if not dist.is_initialized():
        return is_main_process()
    key = "clipx/said/" + hashlib.blake2b(message.encode(), digest_size=16).hexdigest()
    try:
        return dist.distributed_c10d._get_default_store().add(key, 1) == 1
    except (RuntimeError, ValueError):  # who kept the store is gone
        return is_main_process()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of the launch has ended."""
    return launched() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
