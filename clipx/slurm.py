"""What Slurm tells a process that ``srun`` started, as the variables that torch's own launcher sets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clipx.errors import ClipxError

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_PORTS = range(12000, 32000)
"""Below those that Linux gives to outgoing connections."""


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of one task among several.

    Args:
        environment: of the process.

    Returns:
        Nothing where ``srun`` did not start this process beside others: in a batch script, which has the
        job's SLURM_NTASKS and is alone nevertheless; at an interactive prompt; below torchrun or ``accelerate
        launch``, whose variables stand. MASTER_ADDR and MASTER_PORT stay what they are where they are given.

    Raises:
        ClipxError: a variable of Slurm's is missing or not what it should be.

    Source: srun(1), OUTPUT ENVIRONMENT VARIABLES; only ``srun`` sets SLURM_STEP_ID.
    """
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID"))
    if step is None or "SLURM_PTY_PORT" in environment or any(name in environment for name in _LAUNCHED):
        return {}
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if tasks < 2:
        return {}
    rank, local = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID")
    a_node = tasks_per_node(_text(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = _number(environment, "SLURM_NODEID") if len(a_node) > 1 else 0
    if rank >= tasks or sum(a_node) != tasks or node >= len(a_node) or local >= a_node[node]:
        raise ClipxError(
            f"Slurm contradicts itself: task {rank} of {tasks}, {local} on its node, {a_node} on the nodes",
            hint="start all tasks with one srun",
        )
    alone = len(a_node) == 1
    first = "127.0.0.1" if alone else first_host(_text(environment, "SLURM_STEP_NODELIST", "SLURM_NODELIST"))
    job, number = _number(environment, "SLURM_JOB_ID", "SLURM_JOBID"), int(step) if step.isdigit() else 0
    port = _PORTS[(job + 101 * number) % len(_PORTS)]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(a_node[node]),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }


def first_host(nodes: str) -> str:
    """The first name of Slurm's compact list: ``gpu07`` of ``gpu[07-09,12],login1``."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def tasks_per_node(counts: str) -> list[int]:
    """Tasks of every node from Slurm's compact form: ``[4, 4, 3]`` of ``4(x2),3``."""
    found: list[int] = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ClipxError(f"{counts!r} is not how Slurm counts tasks", hint="is SLURM_TASKS_PER_NODE set?")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _text(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    raise ClipxError(
        f"a step of Slurm with several tasks, but {names[0]} is not set",
        hint="start with srun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT",
    )


def _number(environment: Mapping[str, str], *names: str) -> int:
    text = _text(environment, *names)
    if not text.isdigit():
        raise ClipxError(f"{names[0]}={text} is not a number", hint="is this the environment of srun?")
    return int(text)
