"""What processes exchange in a training step: gathered rows, with gradient where a loss needs it."""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor, with_grad: bool = True) -> Tensor:
    """Rows of all processes in rank order, ``[B, ...] -> [W*B, ...]``.

    Args:
        rows: of this process, as many in every process.
        with_grad: differentiable (backward sums what every process sends back); else only this process's own rows
            carry gradient.
    """
    rank, size = world()
    if size == 1:
        return rows
    if with_grad:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(rows.contiguous()))
    parts = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[rank] = rows
    return torch.cat(parts)
