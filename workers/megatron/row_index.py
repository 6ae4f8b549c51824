"""Rows laid end to end, and rows picked by distinct indices, whose gradients need no sum and so are plain copies."""

from typing import Any

import torch
from torch import Tensor


def ragged(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For rows of these lengths laid end to end: (row of each element, its place within the row)."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = torch.cumsum(lengths, dim=0) - lengths
    return row, torch.arange(len(row)) - starts[row]


def scatter_rows(rows: Tensor, slots: Tensor, size: int) -> Tensor:
    """A table of ``size`` rows, zero but for ``rows`` in their slots."""
    return _Scatter.apply(rows, slots, size)


def gather_rows(table: Tensor, slots: Tensor) -> Tensor:
    """The rows in these slots: the inverse of :func:`scatter_rows`."""
    return _Gather.apply(table, slots)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].index_select(0, slots), None, None


class _Gather(torch.autograd.Function):
    """Torch's own gradient of a gather adds atomically and is far slower."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = table.shape[0]
        return table.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.size, *grads[0].shape[1:]).index_copy_(0, slots, grads[0]), None
