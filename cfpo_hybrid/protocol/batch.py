"""DataProto, the batch that every stage reads and writes: columns by name, checked against the schema, frozen."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import (
    JsonValue,
    Values,
    array_dtype,
    checked_column,
    checked_meta,
    column_of,
    common_length,
    common_widths,
    padded_axis,
    tensor_view,
)
from cfpo_hybrid.protocol.pickled import Held, pickled, restored

if TYPE_CHECKING:
    from tensordict import TensorDict


BatchState: TypeAlias = tuple[dict[str, Held], int, Mapping[str, int], Mapping[str, JsonValue]]
"""Columns, number of rows, widths and metadata of a batch."""


class DataProto:
    """Rows of a rollout batch: tensors (as a TensorDict: ``batch.tensors``), object columns, metadata.

    Frozen: every transform returns a new batch, and nobody writes into a column (its memory may be shared with other
    processes). A column may be *deferred*: rows of this batch that lie in another batch, possibly in an object store,
    and that are gathered when the column is read for the first time. A batch that came from workers holds its wide
    columns so; the driver passes it on without ever having touched them.

    Columns are held as numpy arrays in host memory, which moving a batch between processes handles at a fraction of the
    cost of tensors; reading one gives a tensor over the same memory.

    Args:
        columns: values by name; numbers as tensors or arrays, whose memory is shared, objects as an object array or a
            list of one value a row.
        meta: JSON values that belong to the batch as a whole.

    Example: ``DataProto({"prompts": tensor [4, 7], "prompt_lengths": tensor [4], "problem": ["1+1", ...]})``

    Raises:
        BatchError: a column that the schema does not know or that breaks it, or columns that do not fit together.
    """

    __slots__ = ("_deferred", "_length", "_local", "_meta", "_widths")

    _local: dict[str, Held]
    _deferred: dict[str, Block]
    _length: int
    _widths: Mapping[str, int]
    _meta: Mapping[str, JsonValue]

    def __init__(
        self, columns: Mapping[str, Values | Sequence[object]], meta: Mapping[str, JsonValue] | None = None
    ) -> None:
        checked = {name: checked_column(name, values) for name, values in columns.items()}
        self._local, self._deferred = dict[str, Held](checked), {}
        self._length, self._widths = common_length(checked), common_widths(checked, {})
        self._meta = checked_meta(meta or {})

    # --- reading

    def __len__(self) -> int:
        return self._length

    def __contains__(self, name: object) -> bool:
        return name in self._local or name in self._deferred

    def __getitem__(self, name: str) -> Any:
        """One column: a tensor over the batch's memory, or a numpy object array.

        Raises:
            BatchError: the batch has no such column; the message names the stage that writes it.
        """
        array = self.column(name)
        return array if array.dtype.hasobject else tensor_view(array)

    def column(self, name: str) -> np.ndarray:
        """One column as the array it is held as. A deferred column is gathered now and kept.

        Raises:
            BatchError: as for reading ``batch[name]``.
        """
        held = self._held(name)
        if isinstance(held, bytes):
            held = self._local[name] = restored(name, held, self._length, self._widths)
        return held

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, sorted."""
        return tuple(sorted((*self._local, *self._deferred)))

    @property
    def deferred(self) -> Mapping[str, Block]:
        """Columns that have not been read yet, with the place of their rows."""
        return self._deferred

    @property
    def local_columns(self) -> Mapping[str, np.ndarray]:
        """Columns whose values are at hand."""
        return {name: self.column(name) for name in self._local}

    @property
    def local_bytes(self) -> int:
        """Memory of the columns whose values are at hand; of Python objects only the references."""
        return sum(len(held) if isinstance(held, bytes) else held.nbytes for held in self._local.values())

    @property
    def tensors(self) -> "TensorDict":
        """All tensor columns as a TensorDict of batch size ``[len(self)]``."""
        from tensordict import TensorDict  # here: its import takes as long as torch's, in every worker

        names = [name for name in self.column_names if column_of(name).dtype is not object]
        return TensorDict({name: self[name] for name in names}, batch_size=[self._length])

    @property
    def meta(self) -> Mapping[str, JsonValue]:
        """Values that belong to the batch as a whole."""
        return self._meta

    @property
    def widths(self) -> Mapping[str, int]:
        """Width of the ``prompt`` and ``response`` axes, where a column has them."""
        return self._widths

    @property
    def num_tokens(self) -> Tensor:
        """``[batch]`` int64: prompt_lengths + response_lengths, of those that the batch has."""
        lengths = [self[name] for name in ("prompt_lengths", "response_lengths") if name in self]
        return reduce(operator.add, lengths) if lengths else torch.zeros(self._length, dtype=torch.int64)

    def __repr__(self) -> str:
        far = f", deferred: {', '.join(sorted(self._deferred))}" if self._deferred else ""
        return f"DataProto({self._length} rows, {dict(self._widths)}, {', '.join(self.column_names)}{far})"

    # --- transforms

    def with_columns(self, **columns: Values | Sequence[object]) -> "DataProto":
        """A batch with these columns added or replaced."""
        checked = {name: checked_column(name, values) for name, values in columns.items()}
        kept = {name: values for name, values in self._local.items() if name not in checked}
        deferred = {name: block for name, block in self._deferred.items() if name not in checked}
        if checked and common_length(checked) != self._length:
            raise BatchError(f"new columns have {common_length(checked)} rows, the batch has {self._length}")
        widths = common_widths(checked, _widths_of((*kept, *deferred), self._widths))
        return self._make({**kept, **checked}, deferred, self._length, widths, self._meta)

    def with_meta(self, **meta: JsonValue) -> "DataProto":
        """A batch with these metadata added or replaced."""
        merged = {**self._meta, **checked_meta(meta)}
        return self._make(dict(self._local), dict(self._deferred), self._length, self._widths, merged)

    def without(self, *names: str) -> "DataProto":
        """A batch that lacks these columns; each must be there."""
        self._require(names)
        return self.select(*(name for name in self.column_names if name not in names))

    def select(self, *names: str) -> "DataProto":
        """A batch of these columns only."""
        self._require(names)
        if not names:
            raise BatchError("select needs the name of at least one column, else the number of rows is unknown")
        local = {name: values for name, values in self._local.items() if name in names}
        deferred = {name: block for name, block in self._deferred.items() if name in names}
        return self._make(local, deferred, self._length, _widths_of((*local, *deferred), self._widths), self._meta)

    def merge(self, other: "DataProto") -> "DataProto":
        """A batch with the columns of both, row by row; the metadata stay this batch's own.

        Raises:
            BatchError: different numbers of rows or widths, or a column that both have.
        """
        doubled = [name for name in other.column_names if name in self]
        if doubled or len(other) != self._length:
            raise BatchError(
                f"cannot merge {other!r} into {self!r}: " + (f"both have {doubled}" if doubled else "rows differ")
            )
        widths = {axis: other.widths.get(axis, width) for axis, width in self._widths.items()}
        if widths != self._widths:
            raise BatchError(f"cannot merge batches of widths {dict(other.widths)} and {self._widths}")
        local, deferred = self._local | other._local, self._deferred | other._deferred
        return self._make(local, deferred, self._length, {**other.widths, **self._widths}, self._meta)

    def fetch(self, *names: str) -> "DataProto":
        """These columns (all by default) with every value at hand in this process."""
        batch = self.select(*(names or self.column_names))
        for name in batch.column_names:
            batch.column(name)
        return batch

    def rows(self, indices: Tensor | np.ndarray | Sequence[int]) -> "DataProto":
        """The rows ``indices`` (whole numbers, or a bool mask), in that order; values are gathered when a column is read.

        Raises:
            BatchError: an index beyond the batch or no whole number, or a mask of another length.
        """
        wanted = np.asarray(indices)
        if wanted.dtype == bool:
            if wanted.shape != (self._length,):
                raise BatchError(f"a mask of shape {list(wanted.shape)} for a batch of {self._length} rows")
            wanted = np.flatnonzero(wanted)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise BatchError(f"rows are chosen by whole numbers or a bool mask, not by {wanted.dtype}")
        wanted = wanted.astype(np.int64, copy=False)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._length):
            raise BatchError(f"rows {wanted.min()}..{wanted.max()} asked of a batch of {self._length}")
        return self.take(wanted)

    def take(self, wanted: np.ndarray) -> "DataProto":
        """:meth:`rows` for int64 indices that are known to be in range; nothing is checked."""
        taken = {key: block.take(wanted) for key, block in {id(b): b for b in self._deferred.values()}.items()}
        deferred = {name: taken[id(block)] for name, block in self._deferred.items()}
        deferred.update(dict.fromkeys(self._local, Block((self,), None, wanted)))
        return self._make({}, deferred, len(wanted), self._widths, self._meta)

    def repeat_interleave(self, times: int) -> "DataProto":
        """Every row ``times`` times in succession."""
        return self.rows(np.arange(self._length).repeat(times))

    @classmethod
    def concat(
        cls,
        batches: Sequence["DataProto"],
        meta: Mapping[str, JsonValue] | None = None,
        places: Sequence[np.ndarray] | None = None,
    ) -> "DataProto":
        """The rows of all batches; narrower prompts and responses are right-padded to the widest.

        Columns of one value a row are joined now if they are at hand, the others when they are read.

        Args:
            batches: batches of the same columns.
            meta: metadata of the result; by default the batches' own, which must agree then.
            places: for each batch, ``[its rows]`` int64: where they stand in the result, each place once; by default one
                batch after the other.

        Raises:
            BatchError: no batch, columns that differ, or metadata that differ.
        """
        _check_alike(batches, same_meta=meta is None)
        local: dict[str, Held] = {
            name: _joined(batches, name, places)
            for name in batches[0]._local
            if padded_axis(name) is None and all(name in batch._local for batch in batches)
        }
        deferred = _stacked(batches, [name for name in batches[0].column_names if name not in local], places)
        widths = {axis: max(batch.widths[axis] for batch in batches) for axis in batches[0].widths}
        chosen = dict(batches[0].meta) if meta is None else checked_meta(meta)
        return cls._make(local, deferred, sum(len(batch) for batch in batches), widths, chosen)

    # --- to other processes

    def state(self, names: Iterable[str] | None = None) -> BatchState:
        """These columns (by default those at hand) as plain values, with the rows, widths and metadata of the whole batch.

        Plain values are what travels in small calls: looking a class up costs pickle more than the batch does.
        """
        held = self._local if names is None else {name: self._held(name) for name in names}
        return {name: pickled(values) for name, values in held.items()}, self._length, self._widths, self._meta

    @classmethod
    def of_state(cls, state: BatchState, deferred: dict[str, Block] | None = None) -> "DataProto":
        """The batch of that state, with columns that lie elsewhere; nothing is checked again."""
        columns, length, widths, meta = state
        return cls._make(columns, deferred or {}, length, widths, meta)

    def __reduce__(self) -> tuple[Any, ...]:
        return from_state, (self.state(self.column_names),)

    # --- private

    @classmethod
    def _make(
        cls,
        local: dict[str, Held],
        deferred: dict[str, Block],
        length: int,
        widths: Mapping[str, int],
        meta: Mapping[str, JsonValue],
    ) -> "DataProto":
        batch = cls.__new__(cls)
        batch._local, batch._deferred = local, deferred
        batch._length, batch._widths, batch._meta = length, widths, meta
        return batch

    def _held(self, name: str) -> Held:
        """One column at hand, be it bytes still."""
        if name in self._deferred:
            self._local[name] = self._deferred[name].gather(name, self._width_of(name))
            del self._deferred[name]
        if name in self._local:
            return self._local[name]
        raise BatchError(
            f"the batch has no column '{name}', which the stage '{column_of(name).writer}' writes; "
            f"it has {', '.join(self.column_names)}"
        )

    def _width_of(self, name: str) -> int | None:
        axis = padded_axis(name)
        return None if axis is None else self._widths[axis]

    def _require(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self:
                raise BatchError(f"the batch has no column '{name}'; it has {', '.join(self.column_names)}")


def _check_alike(batches: Sequence[DataProto], *, same_meta: bool) -> None:
    if not batches:
        raise BatchError("concat needs at least one batch")
    first = batches[0]
    names = first._local.keys() | first._deferred
    for batch in batches[1:]:
        if batch._local.keys() | batch._deferred != names:
            raise BatchError(
                f"cannot concat batches of different columns: {first.column_names} and {batch.column_names}"
            )
        if same_meta and batch.meta != first.meta:
            raise BatchError(f"cannot concat batches of different meta: {first.meta} and {batch.meta}")


def _stacked(
    batches: Sequence[DataProto], names: Sequence[str], places: Sequence[np.ndarray] | None
) -> dict[str, Block]:
    """These columns of all batches; those that lie in the same places share their block."""
    if not names:
        return {}
    order = None if places is None else np.concatenate(places).argsort()
    own = [Block.whole(batch) for batch in batches]
    stacked: dict[tuple[int, ...], Block] = {}
    deferred: dict[str, Block] = {}
    for name in names:
        sources = [batch.deferred.get(name, whole) for batch, whole in zip(batches, own, strict=True)]
        key = tuple(map(id, sources))
        if key not in stacked:
            block = Block.stack(sources)
            stacked[key] = block if order is None else block.take(order)
        deferred[name] = stacked[key]
    return deferred


def _widths_of(names: Iterable[str], widths: Mapping[str, int]) -> dict[str, int]:
    axes = {padded_axis(name) for name in names}
    return {axis: width for axis, width in widths.items() if axis in axes}


def _joined(batches: Sequence[DataProto], name: str, places: Sequence[np.ndarray] | None) -> np.ndarray:
    """One column of one value a row, of all batches."""
    if places is None:
        return np.concatenate([batch.column(name) for batch in batches])
    joined = np.empty(sum(map(len, batches)), array_dtype(name))
    for batch, rows in zip(batches, places, strict=True):
        joined[rows] = batch.column(name)
    return joined


def from_state(state: BatchState) -> DataProto:
    """:meth:`DataProto.of_state`, by a name that pickle finds."""
    return DataProto.of_state(state)
