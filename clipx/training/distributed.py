"""What processes exchange in a training step: gathered rows and rows passed round a ring, with gradient."""

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipx.errors import ClipxError, did_you_mean

EXCHANGES = ("bidir", "shift", "reduce", "gather")
"""How ``foreign_rows`` brings rows of other processes here."""


def world() -> tuple[int, int]:
    """(rank, number of processes); (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor, with_grad: bool = True) -> Tensor:
    """Rows of all processes in rank order, ``[B, ...] -> [W*B, ...]``.

    Args:
        rows: of this process, as many in every process.
        with_grad: differentiable (backward sums what every process sends back); else only this process's own
            rows carry gradient.

    Raises:
        ClipxError: launched as one of several processes that have no process group.
    """
    rank, size = _group()
    if size == 1:
        return rows
    if with_grad:
        return _Gather.apply(rows)
    parts = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[rank] = rows
    return torch.cat(parts)


def foreign_rows(rows: Tensor, how: str = "bidir") -> Iterator[Tensor]:
    """Blocks ``[B, ...]`` of the other processes, one after another.

    Gradients return to the process a block came from. Every process must take all blocks: each may be a step
    of a collective.

    Args:
        rows: ``[B, ...]`` of this process, as many in every process.
        how: ``bidir`` (both neighbours at once), ``shift`` (round the ring to the right), ``reduce`` (one sum
            of blocks that are zero elsewhere) or ``gather``.

    Yields:
        W - 1 blocks; none in a single process.

    Raises:
        ClipxError: unknown ``how``; different numbers of rows, in every process and before anything is
            exchanged; launched as one of several processes that have no process group.

    Source: Zhai et al. 2023, section 3.3; the four variants are open_clip's.
    """
    if how not in EXCHANGES:
        raise ClipxError(f"unknown exchange {how!r}", hint=did_you_mean(how, EXCHANGES))
    rank, size = _group()
    if size == 1:
        return
    check_equal_rows(rows)
    if how == "gather":
        blocks = gather_rows(rows).unflatten(0, (size, len(rows)))
        yield from (blocks[other] for other in range(size) if other != rank)
    elif how == "reduce":
        # One sum over all blocks: a sum for each would leave the owner of a block out of the backward pass of
        # its own, where the others wait for it.
        blocks = _Sum.apply(torch.stack([rows * float(other == rank) for other in range(size)]))
        yield from (blocks[other] for other in range(size) if other != rank)
    elif how == "shift":
        for _ in range(size - 1):
            (rows,) = exchange((rows,), (1,))
            yield rows
    else:
        leftward = rightward = rows
        for _ in range((size - 1) // 2):
            leftward, rightward = exchange((leftward, rightward), (-1, 1))
            yield leftward
            yield rightward
        if (size - 1) % 2:
            yield exchange((rightward,), (1,))[0]


def sum_across(values: Tensor) -> Tensor:
    """The sum over processes of a tensor, of the same shape in all; differentiable and collective."""
    return values if _group()[1] == 1 else _Sum.apply(values)


def exchange(tensors: tuple[Tensor, ...], hops: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Send tensor i to the process ``hops[i]`` to the right, receive its like from as far to the left.

    Differentiable: the gradient takes the way back. All tensors travel at once, none in a single process.

    Args:
        tensors: any shapes and dtypes, the same in every process.
        hops: as many as tensors; negative is to the left; the ring closes.
    """
    return tensors if _group()[1] == 1 else _Exchange.apply(hops, *tensors)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world()[1])]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank, size = world()
        gradient = gradient.contiguous().clone()
        if dist.get_backend() != "nccl":
            dist.all_reduce(gradient)
            return gradient.chunk(size)[rank]
        own = torch.empty_like(gradient.chunk(size)[rank])
        dist.reduce_scatter_tensor(own, gradient)
        return own


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hops: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.hops = hops
        return _send_and_receive(hops, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, *_send_and_receive(tuple(-hop for hop in ctx.hops), gradients)


def _send_and_receive(hops: tuple[int, ...], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rank, size = world()
    sent = [tensor.contiguous() for tensor in tensors]
    received = tuple(torch.empty_like(tensor) for tensor in sent)
    operations = []
    for tag, (hop, out, into) in enumerate(zip(hops, sent, received, strict=True)):
        # Tags keep tensors apart that go to one neighbour: with two processes left and right are the same.
        operations.append(dist.P2POp(dist.isend, out, (rank + hop) % size, tag=tag))
        operations.append(dist.P2POp(dist.irecv, into, (rank - hop) % size, tag=tag))
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received


def check_equal_rows(rows: Tensor) -> None:
    """Check that every process holds as many rows as this one; collective, nothing in a single process.

    Raises:
        ClipxError: in every process alike, naming the counts in rank order.
    """
    size = _group()[1]
    if size == 1:
        return
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(size)]
    dist.all_gather(counts, count)
    found = torch.cat(counts).tolist()
    if len(set(found)) > 1:
        raise ClipxError(
            f"processes hold batches of different size: {found}",
            hint="give every process the same batch size",
        )


def _group() -> tuple[int, int]:
    """``world()``, refusing to take one of several launched processes for the only one."""
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched.isdigit() and int(launched) > 1 and not (dist.is_available() and dist.is_initialized()):
        raise ClipxError(
            f"WORLD_SIZE is {launched} but there is no process group: each process would train on its own",
            hint="call torch.distributed.init_process_group, or build an accelerate.Accelerator, first",
        )
    return world()
