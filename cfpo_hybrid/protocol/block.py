"""Columns that are gathered when they are read: rows of parts that may live in another process or on another node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.protocol.columns import Values


class Part(Protocol):
    """Some rows of some columns: a batch at hand, or a reference to one in an object store."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Width of the prompt and response axes."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, name: str) -> Values:
        """One column, brought here if it is elsewhere."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Which row of which part becomes which row of a batch, for any number of columns at once.

    Args:
        parts: where the values are.
        part_of_row: ``[batch]`` index into ``parts``, None when there is one part.
        row_in_part: ``[batch]`` row of that part.

    Example: ``parts=(a, b)``, ``part_of_row=[0, 1, 0]``, ``row_in_part=[2, 0, 1]`` is rows a[2], b[0], a[1].
    """

    parts: tuple[Part, ...]
    part_of_row: Tensor | None
    row_in_part: Tensor

    @classmethod
    def whole(cls, part: Part) -> "Block":
        """All rows of one part, in order."""
        return cls((part,), None, torch.arange(len(part)))

    @classmethod
    def stack(cls, blocks: Sequence["Block"]) -> "Block":
        """The rows of several blocks, one block after the other."""
        if len(blocks) == 1:
            return blocks[0]
        parts: list[Part] = []
        part_of_row: list[Tensor] = []
        for block in blocks:
            local = torch.zeros_like(block.row_in_part) if block.part_of_row is None else block.part_of_row
            part_of_row.append(local + len(parts))
            parts.extend(block.parts)
        return cls(tuple(parts), torch.cat(part_of_row), torch.cat([block.row_in_part for block in blocks]))

    def take(self, indices: Tensor) -> "Block":
        """The rows ``indices`` of this block; parts that no row needs are dropped."""
        rows = self.row_in_part[indices]
        if self.part_of_row is None:
            return Block(self.parts, None, rows)
        needed, part_of_row = self.part_of_row[indices].unique(return_inverse=True)
        parts = tuple(self.parts[index] for index in needed.tolist()) or self.parts[:1]
        return Block(parts, part_of_row if len(parts) > 1 else None, rows)

    def gather(self, name: str, width: int | None) -> Values:
        """One column, right-padded with zeros to ``width`` when it has a token axis.

        Rows of a single part that are wanted whole and in order are a view of it, without a copy.
        """
        if self.part_of_row is None:
            return self._gather_from_one(self.parts[0][name], width)
        first = self.parts[0][name]
        length = len(self.row_in_part)
        shape = (length,) if width is None else (length, width)
        result: Values = np.empty(shape, object) if isinstance(first, np.ndarray) else first.new_zeros(shape)
        for index, part in enumerate(self.parts):
            values = part[name]
            positions = (self.part_of_row == index).nonzero().squeeze(1)
            rows = self.row_in_part[positions]
            if isinstance(result, np.ndarray):
                result[positions.numpy()] = values[rows.numpy()]
            elif width is None:
                result[positions] = values[rows]
            else:
                result[positions, : values.shape[1]] = values[rows]
        return result

    def _gather_from_one(self, values: Values, width: int | None) -> Values:
        rows = self.row_in_part
        in_order = len(rows) == len(values) and bool((rows == torch.arange(len(rows))).all())
        if isinstance(values, np.ndarray):
            return values if in_order else values[rows.numpy()]
        chosen = values if in_order else values.index_select(0, rows)
        if width is None or width == chosen.shape[1]:
            return chosen
        return torch.nn.functional.pad(chosen, (0, width - chosen.shape[1]))
