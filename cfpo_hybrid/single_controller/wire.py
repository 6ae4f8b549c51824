"""Calls to Ray workers and results back, as bytes: small columns travel in the message, wide ones stay in the object store.

A call is encoded once for all workers, its batches with all rows; every worker gets its rows beside it and takes them
when it reads a column. Columns that fill a message lie in the object store as a :class:`StoredBatch`, and the call says
which rows of which stored batches they are. The stored batches go along as top-level references, which Ray resolves on
the worker's node to views of shared memory. On the way back, columns of one value a row come with the answer; wide ones
stay in the store of the worker that wrote them, as long as it lives, and the driver gets the reference.
"""

import pickle
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import ray
from ray import ObjectRef, cloudpickle

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.batch import BatchState
from cfpo_hybrid.protocol.columns import Selection
from cfpo_hybrid.single_controller.dispatch import Arguments

INLINE_BYTES = 64 * 1024
"""Columns up to this size in all go inside the message, where a copy costs less than a trip to the object store."""
_HEAD = struct.Struct("<qq")
"""Begins a message: whether the worker answers, and how many row indices follow, each an int64, before the body."""
_ALL_ROWS = -1

EncodedSelection: TypeAlias = tuple[list[str], list[int], np.ndarray | None, np.ndarray | None]
"""Columns that are rows of stored batches: their names, then a Selection with numbers for the batches."""
EncodedBatch: TypeAlias = tuple[BatchState, list[EncodedSelection]]
"""A batch in a message: the columns that are in it, and those that lie in the store."""


class StoredBatch:
    """A batch in Ray's object store; reading a column maps it into this process, without a copy on the same node."""

    def __init__(self, batch: DataProto) -> None:
        self.ref, self.length = ray.put(batch), len(batch)

    def __len__(self) -> int:
        return self.length

    def column(self, name: str) -> np.ndarray:
        """One column, mapped here."""
        return ray.get(self.ref).column(name)


class EncodedCall(NamedTuple):
    """A call on its way to all workers: its body pickled once, and the stored batches that its arguments select from.

    A body beyond the size of a message is in the object store, ``body`` empty and ``far_body`` its reference.
    """

    body: bytes
    far_body: "tuple[ObjectRef[bytes], ...]"
    stored: tuple[StoredBatch, ...]
    selections: tuple[Selection, ...]

    def message(self, rows: np.ndarray | None, answers: bool) -> list[Any]:
        """What Ray is to carry to one worker: the message, the body where it is large, and the references.

        Args:
            rows: that the worker works on, None for all; batches that they do not touch are left out, None in their
                place.
            answers: whether the driver collects the worker's result.
        """
        if rows is None:
            head = _HEAD.pack(answers, _ALL_ROWS)
            return [head + self.body, *self.far_body, *[batch.ref for batch in self.stored]]
        message = b"".join((_HEAD.pack(answers, len(rows)), rows.tobytes(), self.body))
        needed = {batch for selection in self.selections for batch in selection.take(rows).batches}
        return [message, *self.far_body, *[batch.ref if batch in needed else None for batch in self.stored]]


class EncodedReply(NamedTuple):
    """A batch on its way back whose wide columns stay in the object store."""

    state: BatchState
    wide: StoredBatch


def encode_call(method: str, arguments: Arguments) -> EncodedCall:
    """On the driver: the call of a method, for all workers."""
    stored: dict[StoredBatch, int] = {}
    selections: list[Selection] = []
    values: list[Any] = [*arguments.args, *arguments.kwargs.values()]
    batches: dict[int, EncodedBatch] = {}
    for index, value in enumerate(values):
        if isinstance(value, DataProto):
            values[index], batches[index] = None, _encode_batch(value, stored, selections)
    body = _dumps((method, values, tuple(arguments.kwargs), batches))
    near = len(body) <= INLINE_BYTES
    return EncodedCall(body if near else b"", () if near else (ray.put(body),), tuple(stored), tuple(selections))


def decode_call(message: bytes, *beside: Any) -> tuple[str, bool, Arguments]:
    """On the worker: method, whether the result is collected, and the arguments cut to this worker's rows.

    Args:
        message: see :meth:`EncodedCall.message`.
        beside: what Ray made of the references.
    """
    answers, num_rows = _HEAD.unpack_from(message)
    rows, start = None, _HEAD.size
    if num_rows != _ALL_ROWS:
        rows = np.frombuffer(message, np.int64, num_rows, start)
        start += rows.nbytes
    body, stored = (memoryview(message)[start:], beside) if start < len(message) else (beside[0], beside[1:])
    method, values, names, batches = pickle.loads(body)
    for index, encoded in batches.items():
        batch = _decode_batch(encoded, stored)
        values[index] = batch if rows is None else batch.take(rows)
    first_named = len(values) - len(names)
    named = dict(zip(names, values[first_named:], strict=True))
    return method, bool(answers), Arguments(tuple(values[:first_named]), named)


def encode_reply(result: Any) -> Any:
    """On the worker: what it returns to Ray."""
    if not isinstance(result, DataProto):
        return _dumps((False, result))
    wide = result.wide_columns
    stored = result.fetch(*wide) if wide else None
    if stored is None or stored.local_bytes <= INLINE_BYTES:
        return _dumps((True, result.state(result.column_names)))
    small = [name for name in result.column_names if name not in wide]
    return EncodedReply(result.state(small), StoredBatch(stored))


def decode_reply(reply: Any) -> Any:
    """On the driver: the result, the wide columns of a batch left where they are."""
    if isinstance(reply, EncodedReply):
        _, _, widths, _ = reply.state
        return DataProto.of_state(reply.state, dict.fromkeys(widths, Selection((reply.wide,))))
    is_batch, value = pickle.loads(reply)
    return DataProto.of_state(value) if is_batch else value


def _dumps(value: Any) -> bytes:
    """Pickles at the speed of C; what that cannot (functions, classes of a script) goes by value, as Ray does it."""
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return cloudpickle.dumps(value)
    return cloudpickle.dumps(value) if b"__main__" in data else data


def _encode_batch(batch: DataProto, stored: dict[StoredBatch, int], selections: list[Selection]) -> EncodedBatch:
    """A batch; its stored batches, numbered, and its selections are added to those of the call.

    What of it is in this process stays in the message while it is small, else it is put into the store, once for all
    workers.
    """
    for name, selection in [*batch.deferred.items()]:
        if not all(isinstance(part, StoredBatch) for part in selection.batches):
            batch.column(name)  # rows of another batch of this process, gathered here
    near, far = None, dict(batch.deferred)
    if batch.local_bytes > INLINE_BYTES:
        local = batch.select(*(name for name in batch.column_names if name not in far))
        near, far = (), far | dict.fromkeys(local.column_names, Selection((StoredBatch(local),)))
    names_of: dict[Selection, list[str]] = {}
    for name, selection in far.items():
        names_of.setdefault(selection, []).append(name)
    selections.extend(names_of)
    encoded = []
    for selection, names in names_of.items():
        numbers = [stored.setdefault(cast(StoredBatch, part), len(stored)) for part in selection.batches]
        encoded.append((names, numbers, selection.batch_of_row, selection.row_in_batch))
    return batch.state(near), encoded


def _decode_batch(encoded: EncodedBatch, stored: Sequence[Any]) -> DataProto:
    state, selections = encoded
    deferred: dict[str, Selection] = {}
    for names, numbers, batch_of_row, row_in_batch in selections:
        selection = Selection(tuple(stored[number] for number in numbers), batch_of_row, row_in_batch)
        deferred.update(dict.fromkeys(names, selection))
    return DataProto.of_state(state, deferred)
