"""Columns that are gathered when they are read: rows of parts that may live in another process or on another node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cfpo_hybrid.protocol.columns import array_dtype


class Part(Protocol):
    """Some rows of some columns: a batch at hand, or a reference to one in an object store."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Width of the prompt and response axes."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def column(self, name: str) -> np.ndarray:
        """One column, brought here if it is elsewhere."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Which row of which part becomes which row of a batch, for any number of columns at once.

    Args:
        parts: where the values are.
        part_of_row: ``[batch]`` index into ``parts``, None when there is one part.
        row_in_part: ``[batch]`` row of that part, None for all rows of the one part, in order.

    Example: ``parts=(a, b)``, ``part_of_row=[0, 1, 0]``, ``row_in_part=[2, 0, 1]`` is rows a[2], b[0], a[1].
    Indices are numpy arrays, since a small call spends its time on the overhead of every operation.
    """

    parts: tuple[Part, ...]
    part_of_row: np.ndarray | None
    row_in_part: np.ndarray | None

    @classmethod
    def whole(cls, part: Part) -> "Block":
        """All rows of one part, in order."""
        return cls((part,), None, None)

    @classmethod
    def stack(cls, blocks: Sequence["Block"]) -> "Block":
        """The rows of several blocks, one block after the other."""
        if len(blocks) == 1:
            return blocks[0]
        rows = [np.arange(len(block.parts[0])) if block.row_in_part is None else block.row_in_part for block in blocks]
        parts = tuple(part for block in blocks for part in block.parts)
        firsts = np.cumsum([0, *(len(block.parts) for block in blocks[:-1])])
        part_of_row = np.repeat(firsts, [len(chosen) for chosen in rows])
        if len(parts) > len(blocks):
            zero = np.zeros(1, dtype=np.int64)
            local = [zero if block.part_of_row is None else block.part_of_row for block in blocks]
            sizes = [chosen.shape for chosen in rows]
            part_of_row += np.concatenate([np.broadcast_to(*pair) for pair in zip(local, sizes, strict=True)])
        return cls(parts, part_of_row, np.concatenate(rows))

    def take(self, indices: np.ndarray) -> "Block":
        """The rows ``indices`` of this block; parts that no row needs are dropped."""
        rows = indices if self.row_in_part is None else self.row_in_part[indices]
        if self.part_of_row is None:
            return Block(self.parts, None, rows)
        part_of_row = self.part_of_row[indices]
        needed = np.bincount(part_of_row, minlength=len(self.parts)) > 0
        if needed.all():
            return Block(self.parts, part_of_row, rows)
        parts = tuple(part for part, keep in zip(self.parts, needed, strict=True) if keep) or self.parts[:1]
        return Block(parts, (np.cumsum(needed) - 1)[part_of_row] if len(parts) > 1 else None, rows)

    def gather(self, name: str, width: int | None) -> np.ndarray:
        """One column, right-padded with zeros to ``width`` when it has a token axis.

        Rows of a single part that are wanted whole and in order are a view of it, without a copy.
        """
        sources = [part.column(name) for part in self.parts]
        if self.row_in_part is None:
            return _pad(sources[0], width)
        if self.part_of_row is None:
            return _pad(_take_rows(sources[0], self.row_in_part), width)
        if width is None:  # small: joined whole, then put in order
            starts = np.cumsum([0, *(len(part) for part in self.parts[:-1])])
            return _take_rows(np.concatenate(sources), starts[self.part_of_row] + self.row_in_part)
        result = np.zeros((len(self.row_in_part), width), array_dtype(name))
        for index, source in enumerate(sources):
            positions = np.flatnonzero(self.part_of_row == index)
            result[positions, : source.shape[1]] = _take_rows(source, self.row_in_part[positions])
        return result


def _take_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    size = len(rows)
    if size == len(values) and (size == 0 or (rows[0] == 0 and rows[-1] == size - 1 and _ascending(rows))):
        return values
    return values[rows]


def _ascending(rows: np.ndarray) -> bool:
    return bool((rows == np.arange(len(rows))).all())


def _pad(values: np.ndarray, width: int | None) -> np.ndarray:
    if width is None or values.shape[1] == width:
        return values
    padded = np.zeros((len(values), width), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded
