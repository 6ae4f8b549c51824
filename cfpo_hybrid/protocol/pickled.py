"""Columns on their way to another process: large ones as arrays, which go out of band, small ones as bytes.

Pickling a numpy array costs some thirty microseconds however small it is, its bytes one; a small call between driver
and workers spends its time on just that. So bytes become an array again only when the column is read.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from cfpo_hybrid.protocol.columns import array_dtype, padded_axis

_SMALL_BYTES = 16 * 1024

Held: TypeAlias = np.ndarray | bytes
"""A column inside a batch: its array, or the bytes it came as; the schema, the rows and the widths tell their shape."""


def pickled(values: Held) -> Held:
    """The column as pickle is to see it."""
    if isinstance(values, bytes) or values.dtype.hasobject:
        return values
    return values.tobytes() if values.nbytes <= _SMALL_BYTES else np.ascontiguousarray(values)


def restored(name: str, data: bytes, length: int, widths: Mapping[str, int]) -> np.ndarray:
    """The array of a column from the bytes it came as; writable, as torch wants it."""
    axis = padded_axis(name)
    return np.ndarray((length,) if axis is None else (length, widths[axis]), array_dtype(name), bytearray(data))
