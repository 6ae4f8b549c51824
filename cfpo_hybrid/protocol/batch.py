"""DataProto, the batch that every stage reads and writes: columns by name, checked against the schema, frozen."""

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError
from cfpo_hybrid.protocol.columns import HeldColumn, Selection, restored, tensor_view, to_travel
from cfpo_hybrid.protocol.schema import (
    SCHEMA,
    GivenColumn,
    JsonValue,
    array_dtype,
    checked_column,
    checked_meta,
    column_spec,
    columns_read_by,
    common_length,
    common_widths,
)

if TYPE_CHECKING:
    from tensordict import TensorDict


BatchState: TypeAlias = tuple[dict[str, HeldColumn], int, Mapping[str, int], Mapping[str, JsonValue]]
"""Columns, number of rows, width of each column that has a token axis, and metadata of a batch."""


class DataProto:
    """Rows of a rollout batch: tensors (as a TensorDict: ``batch.tensors``), object columns, metadata.

    Frozen: every transform returns a new batch, and nobody writes into a column (its memory may be shared with other
    processes). A column may be *deferred*: rows of other batches, possibly in an object store, that are gathered when
    the column is read for the first time. A batch that came from workers holds its wide columns so; the driver passes it
    on without ever having touched them.

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

    _local: dict[str, HeldColumn]
    _deferred: dict[str, Selection]
    _length: int
    _widths: Mapping[str, int]
    _meta: Mapping[str, JsonValue]

    def __init__(self, columns: Mapping[str, GivenColumn], meta: Mapping[str, JsonValue] | None = None) -> None:
        checked = {name: checked_column(name, values) for name, values in columns.items()}
        self._local, self._deferred = dict[str, HeldColumn](checked), {}
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
            held = self._local[name] = restored(name, held, self._length, self._widths.get(name))
        return held

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, sorted."""
        return tuple(sorted((*self._local, *self._deferred)))

    @property
    def deferred(self) -> Mapping[str, Selection]:
        """Columns that have not been read yet, with the place of their rows."""
        return self._deferred

    @property
    def local_bytes(self) -> int:
        """Memory of the columns whose values are at hand; of Python objects only the references."""
        return sum(len(held) if isinstance(held, bytes) else held.nbytes for held in self._local.values())

    @property
    def tensors(self) -> "TensorDict":
        """All tensor columns as a TensorDict of batch size ``[len(self)]``."""
        from tensordict import TensorDict  # here: its import takes as long as torch's, in every worker

        names = [name for name in self.column_names if SCHEMA[name].dtype is not object]
        return TensorDict({name: self[name] for name in names}, batch_size=[self._length])

    @property
    def meta(self) -> Mapping[str, JsonValue]:
        """Values that belong to the batch as a whole."""
        return self._meta

    @property
    def widths(self) -> Mapping[str, int]:
        """Width of the ``prompt`` and ``response`` axes, where a column has them."""
        return {SCHEMA[name].axes[1]: width for name, width in self._widths.items()}

    @property
    def wide_columns(self) -> tuple[str, ...]:
        """Names of the columns that have a token axis."""
        return tuple(self._widths)

    @property
    def num_tokens(self) -> Tensor:
        """``[batch]`` int64: prompt_lengths + response_lengths, of those that the batch has."""
        lengths = [self[name] for name in ("prompt_lengths", "response_lengths") if name in self]
        return reduce(operator.add, lengths) if lengths else torch.zeros(self._length, dtype=torch.int64)

    def __repr__(self) -> str:
        far = f", deferred: {', '.join(sorted(self._deferred))}" if self._deferred else ""
        return f"DataProto({self._length} rows, {self.widths}, {', '.join(self.column_names)}{far})"

    # --- transforms

    def with_columns(self, **columns: GivenColumn) -> "DataProto":
        """A batch with these columns added or replaced."""
        checked = {name: checked_column(name, values) for name, values in columns.items()}
        if checked and common_length(checked) != self._length:
            raise BatchError(f"new columns have {common_length(checked)} rows, the batch has {self._length}")
        kept = self._narrowed([name for name in self.column_names if name not in checked])
        kept._local.update(checked)
        kept._widths = common_widths(checked, kept._widths)
        return kept

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
        return self._narrowed(names)

    def read_by(self, layout: str) -> "DataProto":
        """A batch of the columns that the worker methods of a layout read, by the schema; maybe of none."""
        names = columns_read_by(layout)
        if names.issuperset(self._local) and names.issuperset(self._deferred):
            return self
        return self._narrowed(names)

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
        mine, theirs = self.widths, other.widths
        if any(theirs.get(axis, width) != width for axis, width in mine.items()):
            raise BatchError(f"cannot merge batches of widths {theirs} and {mine}")
        local, deferred = self._local | other._local, self._deferred | other._deferred
        return self._make(local, deferred, self._length, {**other._widths, **self._widths}, self._meta)

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
        taken = {key: chosen.take(wanted) for key, chosen in {id(c): c for c in self._deferred.values()}.items()}
        deferred = {name: taken[id(chosen)] for name, chosen in self._deferred.items()}
        deferred.update(dict.fromkeys(self._local, Selection((self,), None, wanted)))
        return self._make({}, deferred, len(wanted), self._widths, self._meta)

    @classmethod
    def concat(
        cls,
        batches: Sequence["DataProto"],
        meta: Mapping[str, JsonValue] | None = None,
        rows: Sequence[np.ndarray] | None = None,
    ) -> "DataProto":
        """The rows of all batches; narrower prompts and responses are right-padded to the widest.

        Columns of one value a row are joined now if they are at hand, the others when they are read.

        Args:
            batches: batches of the same columns in the same shapes.
            meta: metadata of the result; by default the batches' own, which must agree then.
            rows: for each batch, ``[its rows]`` int64: the rows of the result that they are, each row once; by default
                one batch comes after the other.

        Raises:
            BatchError: no batch, columns or shapes that differ, or metadata that differ.
        """
        _check_alike(batches, same_meta=meta is None)
        local: dict[str, HeldColumn] = {
            name: _joined(batches, name, rows)
            for name in batches[0]._local
            if name not in batches[0]._widths and all(name in batch._local for batch in batches)
        }
        deferred = _stacked(batches, [name for name in batches[0].column_names if name not in local], rows)
        widths = {name: max(batch._widths[name] for batch in batches) for name in batches[0]._widths}
        chosen = dict(batches[0].meta) if meta is None else checked_meta(meta)
        return cls._make(local, deferred, sum(len(batch) for batch in batches), widths, chosen)

    # --- to other processes

    def state(self, names: Iterable[str] | None = None) -> BatchState:
        """These columns (by default those at hand) as plain values, with the rows, widths and metadata of the whole batch.

        Plain values are what travels in small calls: looking a class up costs pickle more than the batch does.
        """
        held = self._local if names is None else {name: self._held(name) for name in names}
        return {name: to_travel(column) for name, column in held.items()}, self._length, self._widths, self._meta

    @classmethod
    def of_state(cls, state: BatchState, deferred: dict[str, Selection] | None = None) -> "DataProto":
        """The batch of that state, with columns that lie elsewhere; nothing is checked again."""
        columns, length, widths, meta = state
        return cls._make(columns, deferred or {}, length, widths, meta)

    def __getstate__(self) -> BatchState:
        return self.state(self.column_names)

    def __setstate__(self, state: BatchState) -> None:
        self._local, self._length, self._widths, self._meta = state
        self._deferred = {}

    # --- private

    @classmethod
    def _make(
        cls,
        local: dict[str, HeldColumn],
        deferred: dict[str, Selection],
        length: int,
        widths: Mapping[str, int],
        meta: Mapping[str, JsonValue],
    ) -> "DataProto":
        batch = cls.__new__(cls)
        batch._local, batch._deferred = local, deferred
        batch._length, batch._widths, batch._meta = length, widths, meta
        return batch

    def _narrowed(self, names: Container[str]) -> "DataProto":
        """A batch of those of its columns that are among the names."""
        local = {name: held for name, held in self._local.items() if name in names}
        deferred = {name: chosen for name, chosen in self._deferred.items() if name in names}
        widths = {name: width for name, width in self._widths.items() if name in names}
        return self._make(local, deferred, self._length, widths, self._meta)

    def _held(self, name: str) -> HeldColumn:
        """One column at hand, be it bytes still."""
        if name in self._deferred:
            self._local[name] = self._deferred[name].column(name, self._widths.get(name))
            del self._deferred[name]
        if name in self._local:
            return self._local[name]
        spec = column_spec(name)
        readers = f"the layouts {', '.join(spec.readers)} read" if spec.readers else "no worker reads"
        raise BatchError(
            f"the batch has no column '{name}', which the stage '{spec.writer}' writes and {readers}; "
            f"it has {', '.join(self.column_names)}"
        )

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
        if batch._widths.keys() != first._widths.keys():
            odd = ", ".join(sorted(batch._widths.keys() ^ first._widths.keys()))
            raise BatchError(f"cannot concat batches of different shapes: only one of them has a token axis in {odd}")
        if same_meta and batch.meta != first.meta:
            raise BatchError(f"cannot concat batches of different meta: {first.meta} and {batch.meta}")


def _stacked(
    batches: Sequence[DataProto], names: Sequence[str], rows: Sequence[np.ndarray] | None
) -> dict[str, Selection]:
    """These columns of all batches; those whose rows lie alike share their selection."""
    if not names:
        return {}
    order = None if rows is None else np.concatenate(rows).argsort()
    own = [Selection((batch,)) for batch in batches]
    stacked: dict[tuple[int, ...], Selection] = {}
    deferred: dict[str, Selection] = {}
    for name in names:
        selections = [batch.deferred.get(name, whole) for batch, whole in zip(batches, own, strict=True)]
        key = tuple(map(id, selections))
        if key not in stacked:
            together = Selection.stack(selections)
            stacked[key] = together if order is None else together.take(order)
        deferred[name] = stacked[key]
    return deferred


def _joined(batches: Sequence[DataProto], name: str, rows: Sequence[np.ndarray] | None) -> np.ndarray:
    """One column of one value a row, of all batches."""
    if rows is None:
        return np.concatenate([batch.column(name) for batch in batches])
    joined = np.empty(sum(map(len, batches)), array_dtype(name))
    for batch, own in zip(batches, rows, strict=True):
        joined[own] = batch.column(name)
    return joined
