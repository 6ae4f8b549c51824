"""Columns inside a pickle: large ones as numpy arrays, which travel out of band without a copy, small ones as bytes.

Pickling a numpy array costs some thirty microseconds however small it is, its bytes one; a small call between driver
and workers spends its time on just that. So columns with a token axis become tensors again only when they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import Values, array_view, padded_axis, tensor_dtype, tensor_view

_SMALL_BYTES = 16 * 1024
"""Tensors up to this size go as bytes."""

PickledColumns: TypeAlias = dict[str, np.ndarray | tuple[tuple[int, ...], bytes]]
"""By name: an array, or the shape and the bytes of a tensor whose dtype the schema knows."""


@dataclass(frozen=True, slots=True, eq=False)
class PickledRows:
    """The rows of a batch as they came: a part whose columns are restored when they are read."""

    columns: PickledColumns
    length: int
    widths: Mapping[str, int]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> Values:
        return _restored(name, self.columns[name])


def pickled_columns(columns: Mapping[str, Values]) -> PickledColumns:
    """The columns as pickle is to see them."""
    return {name: _small(values) if _is_small(values) else array_view(values) for name, values in columns.items()}


def unpickled_columns(rows: PickledRows) -> tuple[dict[str, Values], dict[str, Block]]:
    """The columns again: those of one value a row at hand, wide ones for when they are read."""
    wide = [name for name in rows.columns if padded_axis(name) is not None]
    near = {name: rows[name] for name in rows.columns if name not in wide}
    return near, dict.fromkeys(wide, Block.whole(rows)) if wide else {}


def _is_small(values: Values) -> bool:
    return isinstance(values, Tensor) and values.nbytes <= _SMALL_BYTES


def _small(values: Values) -> tuple[tuple[int, ...], bytes]:
    return tuple(values.shape), array_view(values).tobytes()


def _restored(name: str, stored: np.ndarray | tuple[tuple[int, ...], bytes]) -> Values:
    if isinstance(stored, np.ndarray):
        return stored if stored.dtype == object else tensor_view(stored)
    shape, data = stored
    if not data:
        return torch.empty(shape, dtype=tensor_dtype(name))
    return torch.frombuffer(bytearray(data), dtype=tensor_dtype(name)).view(shape)
