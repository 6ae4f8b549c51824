"""Columns inside a pickle: large ones as numpy arrays, which travel out of band without a copy, small ones as bytes.

Pickling a numpy array costs some thirty microseconds however small it is, its bytes one; a small call between driver
and workers spends its time on just that. So columns with a token axis become tensors again only when they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import Values, array_view, padded_axis, tensor_view

_SMALL_BYTES = 16 * 1024
"""Tensors up to this size go as bytes."""

_Small: TypeAlias = tuple[tuple[int, ...], str, bytes]
"""Shape, numpy's name of the dtype, and content."""
PickledColumns: TypeAlias = dict[str, np.ndarray | _Small]


@dataclass(frozen=True, slots=True, eq=False)
class PickledRows:
    """The rows of a batch as they came: a part whose columns are restored when they are read."""

    columns: PickledColumns
    length: int
    widths: Mapping[str, int]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> Values:
        return _restored(self.columns[name])


def pickled_columns(columns: Mapping[str, Values]) -> PickledColumns:
    """The columns as pickle is to see them."""
    return {name: _as_bytes(values) or array_view(values) for name, values in columns.items()}


def unpickled_columns(rows: PickledRows) -> tuple[dict[str, Values], dict[str, Block]]:
    """The columns again: those of one value a row at hand, wide ones for when they are read."""
    wide = [name for name in rows.columns if padded_axis(name) is not None]
    near = {name: rows[name] for name in rows.columns if name not in wide}
    return near, dict.fromkeys(wide, Block.whole(rows)) if wide else {}


def _as_bytes(values: Values) -> _Small | None:
    """A small tensor; None for anything else."""
    if not isinstance(values, Tensor) or values.nbytes > _SMALL_BYTES:
        return None
    array = values.numpy(force=True)
    return array.shape, array.dtype.str, array.tobytes()


def _restored(stored: np.ndarray | _Small) -> Values:
    if isinstance(stored, tuple):
        shape, dtype, data = stored
        stored = np.ndarray(shape, dtype, bytearray(data))
    return stored if stored.dtype == object else tensor_view(stored)
