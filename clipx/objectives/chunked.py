"""Sums over all pairs of a batch whose matrix of logits is never held whole, only a few rows at a time."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipx.errors import ClipxError


def log_sums(rows: Tensor, columns: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of every row and of every column of ``rows @ columns.T``.

    Args:
        rows: ``[B, D]``, the logit scale multiplied in.
        columns: ``[M, D]``.
        chunk_size: rows scored at a time, 1 or more; the peak memory is a few times ``chunk_size * M``. The
            backward pass computes them again.

    Returns:
        ``[B]`` and ``[M]``.

    Source: the running maximum and sum of Milakov and Gimelshein 2018, over the columns.
    """
    return _LogSums.apply(rows, columns, chunk_size, True)


def row_log_sums(rows: Tensor, columns: Tensor, chunk_size: int) -> Tensor:
    """Log-sum-exp ``[B]`` of every row, see ``log_sums``."""
    return _LogSums.apply(rows, columns, chunk_size, False)[0]


def softplus_sum(rows: Tensor, columns: Tensor, bias: Tensor, chunk_size: int) -> Tensor:
    """The sum of ``softplus(rows @ columns.T + bias)`` over all pairs, a scalar.

    A sum knows its gradient as it goes, so that each chunk is scored once, and the gradients of ``rows`` and
    ``columns`` are held from the forward to the backward pass.

    Args:
        rows: ``[B, D]``, the logit scale multiplied in.
        columns: ``[M, D]``.
        bias: a scalar.
        chunk_size: rows scored at a time, 1 or more; the peak memory is a few times ``chunk_size * M``.
    """
    return _SoftplusSum.apply(rows, columns, bias, chunk_size)


def check_chunk_size(chunk_size: int) -> None:
    """Check a number of rows, of which 0 stands for all.

    Raises:
        ClipxError: it is below 0.
    """
    if chunk_size < 0:
        raise ClipxError(f"chunk_size is {chunk_size}, must be 0 (no chunks) or more")


def at_least_float32(rows: Tensor) -> Tensor:
    """Rows ``[..., D]`` for logits: those of half-precision rows at scale 100 would be off by a quarter."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, chunk_size: int, both: bool
    ) -> tuple[Tensor, Tensor | None]:
        of_rows = rows.new_empty(len(rows))
        of_columns = columns.new_full((len(columns),), -torch.inf) if both else None
        for part in _slices(len(rows), chunk_size):
            logits = rows[part] @ columns.T
            torch.logsumexp(logits, 1, out=of_rows[part])
            if of_columns is not None:
                of_columns = torch.logaddexp(of_columns, logits.logsumexp(0))
        ctx.save_for_backward(rows, columns, of_rows, of_columns)
        ctx.chunk_size = chunk_size
        ctx.set_materialize_grads(False)
        return of_rows, of_columns

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, row_gradient: Tensor | None, column_gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if row_gradient is None and column_gradient is None:
            return None, None, None, None
        rows, columns, of_rows, of_columns = ctx.saved_tensors
        to_rows, to_columns = torch.empty_like(rows), torch.zeros_like(columns)
        for part in _slices(len(rows), ctx.chunk_size):
            logits = rows[part] @ columns.T
            terms = []
            if row_gradient is not None:
                terms.append((logits - of_rows[part, None]).exp_().mul_(row_gradient[part, None]))
            if column_gradient is not None:
                terms.append((logits - of_columns).exp_().mul_(column_gradient))
            slopes = functools.reduce(Tensor.add_, terms)
            torch.mm(slopes, columns, out=to_rows[part])
            to_columns.addmm_(slopes.T, rows[part])
        return to_rows, to_columns, None, None


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, bias: Tensor, chunk_size: int) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        total = rows.new_zeros(())
        to_rows, to_columns, to_bias = torch.empty_like(rows), torch.zeros_like(columns), rows.new_zeros(())
        for part in _slices(len(rows), chunk_size):
            logits = torch.addmm(bias, rows[part], columns.T)
            total += torch.nn.functional.softplus(logits).sum()
            if wanted:
                slopes = logits.sigmoid_()
                to_bias += slopes.sum()
                torch.mm(slopes, columns, out=to_rows[part])
                to_columns.addmm_(slopes.T, rows[part])
        if wanted:
            ctx.save_for_backward(to_rows, to_columns, to_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_rows, to_columns, to_bias = ctx.saved_tensors
        return gradient * to_rows, gradient * to_columns, gradient * to_bias, None


def _slices(rows: int, chunk_size: int) -> Iterator[slice]:
    return (slice(first, first + chunk_size) for first in range(0, rows, chunk_size))
