"""Columns inside a pickle: large ones as numpy arrays, which travel out of band without a copy, small ones as bytes.

Pickling a numpy array costs some thirty microseconds however small it is, its bytes one; a small call between driver
and workers spends its time on just that. So columns become tensors again only when they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cfpo_hybrid.protocol.columns import Values, array_dtype, array_view, padded_axis

_SMALL_BYTES = 16 * 1024
"""Tensors up to this size go as bytes; the schema, the number of rows and the widths tell what they are."""

PickledColumns: TypeAlias = dict[str, np.ndarray | bytes]


@dataclass(frozen=True, slots=True, eq=False)
class PickledRows:
    """The rows of a batch as they came: a part whose columns are restored when they are read."""

    columns: PickledColumns
    length: int
    widths: Mapping[str, int]

    def __len__(self) -> int:
        return self.length

    def column(self, name: str) -> np.ndarray:
        """One column as an array."""
        stored = self.columns[name]
        if isinstance(stored, np.ndarray):
            return stored
        axis = padded_axis(name)
        shape = (self.length,) if axis is None else (self.length, self.widths[axis])
        return np.ndarray(shape, array_dtype(name), bytearray(stored))


def pickled_columns(columns: Mapping[str, Values]) -> PickledColumns:
    """The columns as pickle is to see them."""
    return {name: _pickled(values) for name, values in columns.items()}


def _pickled(values: Values) -> np.ndarray | bytes:
    array = array_view(values)
    return array.tobytes() if array.nbytes <= _SMALL_BYTES and array.dtype != object else array
