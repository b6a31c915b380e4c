"""Several ranks of one run: rows of all ranks put together with gradient, and a clean end.

Models and objectives are written for one device; a loss calls `gather` once. On one rank it does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["close_process_group", "gather", "world_size"]


def world_size() -> int:
    """Number of ranks of this run; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(rows: Tensor) -> Tensor:
    """Rows (m, ...) of every rank, rank by rank: (sum of m, ...). Ranks may hold different numbers of rows.

    Floating-point rows carry gradient: each rank gets the sum over ranks of the gradients of its own rows.
    If every rank computes the loss over all rows and gradients of the weights are averaged over ranks
    (DDP), the step is that of one process with the whole batch. Must be called by all ranks, in the same
    order.
    """
    if world_size() == 1:
        return rows
    counts = _row_counts(rows)
    if rows.is_floating_point():
        return _Gather.apply(rows, counts)
    return _gather_padded(rows, counts)


def close_process_group() -> None:
    """End the process group, if there is one. To be called before the process ends.

    An open gloo group aborts some processes at exit (a thread of it wants the interpreter while that shuts
    down).
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _row_counts(rows: Tensor) -> list[int]:
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def _gather_padded(rows: Tensor, counts: list[int]) -> Tensor:
    """All-gather needs one shape on all ranks: pad with zeros to the longest, then cut."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    chunks = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(chunks, padded)
    return torch.cat([chunk[:count] for chunk, count in zip(chunks, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """Ours, since torch's gather with gradient is deprecated and leaves gloo processes aborting at exit."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.begin = sum(counts[: dist.get_rank()])
        ctx.count = len(rows)
        return _gather_padded(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.begin : ctx.begin + ctx.count], None
