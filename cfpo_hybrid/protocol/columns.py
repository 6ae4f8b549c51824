"""How a batch holds its columns: as arrays, as the bytes they came as, or as rows of other batches.

Pickling a numpy array costs some thirty microseconds however small it is, its bytes one; a small call between driver
and workers spends its time on just that. So a small column travels as bytes, which become an array again only when the
column is read, while the memory of a large one goes out of band.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.protocol.schema import array_dtype

HeldColumn: TypeAlias = np.ndarray | bytes
"""A column at hand: its array, or the bytes it came as."""

_SMALL_BYTES = 16 * 1024


def to_travel(column: HeldColumn) -> HeldColumn:
    """The column as pickle is to see it."""
    if isinstance(column, bytes) or column.dtype.hasobject:
        return column
    return column.tobytes() if column.nbytes <= _SMALL_BYTES else np.ascontiguousarray(column)


def restored(name: str, data: bytes, length: int, width: int | None) -> np.ndarray:
    """The array of a column from the bytes it came as; writable, as torch wants it."""
    return np.ndarray((length,) if width is None else (length, width), array_dtype(name), bytearray(data))


def tensor_view(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory, also over the read-only memory of an object store.

    Batches are frozen, so nobody writes through it; torch's warning that one could is silenced.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class BatchLike(Protocol):
    """Some rows of some columns: a batch at hand, or a reference to one in an object store."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def column(self, name: str) -> np.ndarray:
        """One column, brought here if it is elsewhere."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """Which row of which batch becomes which row of a new one, for any number of columns at once.

    Args:
        batches: where the values are.
        batch_of_row: ``[batch]`` index into ``batches``, None when there is one of them.
        row_in_batch: ``[batch]`` row of that batch, None for all rows of the only one, in order.

    Example: ``batches=(a, b)``, ``batch_of_row=[0, 1, 0]``, ``row_in_batch=[2, 0, 1]`` is rows a[2], b[0], a[1].
    Indices are numpy arrays, since a small call spends its time on the overhead of every operation.
    """

    batches: tuple[BatchLike, ...]
    batch_of_row: np.ndarray | None = None
    row_in_batch: np.ndarray | None = None

    @classmethod
    def stack(cls, selections: Sequence["Selection"]) -> "Selection":
        """The rows of several selections, one after the other."""
        if len(selections) == 1:
            return selections[0]
        batches: list[BatchLike] = []
        batch_of_row, row_in_batch = [], []
        for chosen in selections:
            rows = np.arange(len(chosen.batches[0])) if chosen.row_in_batch is None else chosen.row_in_batch
            owners = np.zeros_like(rows) if chosen.batch_of_row is None else chosen.batch_of_row
            row_in_batch.append(rows)
            batch_of_row.append(owners + len(batches))
            batches += chosen.batches
        return cls(tuple(batches), np.concatenate(batch_of_row), np.concatenate(row_in_batch))

    def take(self, indices: np.ndarray) -> "Selection":
        """The rows ``indices`` of this selection; batches that no row needs are dropped."""
        rows = indices if self.row_in_batch is None else self.row_in_batch[indices]
        if self.batch_of_row is None:
            return Selection(self.batches, None, rows)
        batch_of_row = self.batch_of_row[indices]
        needed = np.bincount(batch_of_row, minlength=len(self.batches)) > 0
        if needed.all():
            return Selection(self.batches, batch_of_row, rows)
        batches = tuple(batch for batch, keep in zip(self.batches, needed, strict=True) if keep) or self.batches[:1]
        return Selection(batches, (np.cumsum(needed) - 1)[batch_of_row] if len(batches) > 1 else None, rows)

    def column(self, name: str, width: int | None) -> np.ndarray:
        """One column, gathered, and right-padded with zeros to ``width`` when it has a token axis.

        Rows of a single batch that are wanted whole and in order are a view of it, without a copy.
        """
        columns = [batch.column(name) for batch in self.batches]
        if self.row_in_batch is None:
            return _pad(columns[0], width)
        if self.batch_of_row is None:
            return _pad(_take_rows(columns[0], self.row_in_batch), width)
        if width is None:  # small: joined whole, then put in order
            starts = np.cumsum([0, *(len(batch) for batch in self.batches[:-1])])
            return _take_rows(np.concatenate(columns), starts[self.batch_of_row] + self.row_in_batch)
        result = np.zeros((len(self.row_in_batch), width), array_dtype(name))
        for index, column in enumerate(columns):
            positions = np.flatnonzero(self.batch_of_row == index)
            result[positions, : column.shape[1]] = _take_rows(column, self.row_in_batch[positions])
        return result


def _take_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    size = len(rows)
    if size == len(values) and (
        size == 0 or (rows[0] == 0 and rows[-1] == size - 1 and np.array_equal(rows, np.arange(size)))
    ):
        return values
    return values[rows]


def _pad(values: np.ndarray, width: int | None) -> np.ndarray:
    if width is None or values.shape[1] == width:
        return values
    padded = np.zeros((len(values), width), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded
