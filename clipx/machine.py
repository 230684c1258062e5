"""What this machine has."""

import os


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def own_cores() -> int:
    """Cores that this process may take for its own: its share where several of one launch are on the machine.

    Slurm says it of a task that ``srun`` started; torchrun and its kind say how many processes are beside.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if "SLURM_STEP_ID" in os.environ and given.isdigit():
        return min(cores(), max(1, int(given)))
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores() // max(1, int(beside) if beside.isdigit() else 1))
