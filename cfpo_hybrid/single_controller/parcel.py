"""Batches between driver and Ray workers: small columns travel in the message, wide ones stay in the object store.

A call is pickled once for all ranks, its batches whole; every rank gets its rows beside it and takes them when it reads
a column. Columns in the object store become a :class:`Parcel`: which rows of which stored parts they are. The parts go
along as top-level references, which Ray resolves on the worker's node to views of shared memory. On the way back,
columns of one value a row come with the answer; wide ones stay in the store of the worker that wrote them, as long as it
lives, and the driver gets the reference.
"""

import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import ray
from ray import ObjectRef, cloudpickle

from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.protocol.batch import BatchState
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import padded_axis
from cfpo_hybrid.single_controller.split import Arguments

INLINE_BYTES = 64 * 1024
"""Columns up to this size in all go inside the message, where a copy costs less than a trip to the object store."""
_HEAD = struct.Struct("<qq")
"""Begins a message: whether the rank answers, and how many row indices follow, each an int64, before the body."""
_ALL_ROWS = -1


class StoredPart:
    """A batch in Ray's object store; reading a column maps it into this process, without a copy on the same node."""

    def __init__(self, ref: "ObjectRef[DataProto]", length: int, widths: Mapping[str, int]) -> None:
        self.ref, self.length, self.widths = ref, length, widths

    def __len__(self) -> int:
        return self.length

    def column(self, name: str) -> np.ndarray:
        """One column, mapped here."""
        return ray.get(self.ref).column(name)


class _Reference(NamedTuple):
    """Columns of a parcel that are rows of parts: a Block with places in the list of references for its parts."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    part_of_row: np.ndarray | None
    row_in_part: np.ndarray | None


Parcel: TypeAlias = tuple[BatchState, tuple[_Reference, ...]]
"""A batch on its way to a worker: what of it travels in the message, and which columns lie in the store."""


class Call(NamedTuple):
    """A call on its way to all ranks: its body pickled once, and the stored parts that its parcels refer to.

    A body beyond the size of a message is in the object store, ``body`` empty and ``far_body`` its reference.
    """

    body: bytes
    far_body: "tuple[ObjectRef[bytes]] | tuple[()]"
    parts: tuple[StoredPart, ...]
    blocks: tuple[Block, ...]

    def arguments_for(self, rows: np.ndarray | None, answers: bool) -> list[Any]:
        """What Ray is to carry to one rank: the message, the body where it is large, and the references.

        Args:
            rows: that the rank works on, None for all; parts that they do not touch are left out, None in their place.
            answers: whether the driver collects the rank's result.
        """
        if rows is None:
            message = _HEAD.pack(answers, _ALL_ROWS) + self.body
            return [message, *self.far_body, *[part.ref for part in self.parts]]
        message = b"".join((_HEAD.pack(answers, len(rows)), rows.tobytes(), self.body))
        needed = {id(part) for block in self.blocks for part in block.take(rows).parts}
        return [message, *self.far_body, *[part.ref if id(part) in needed else None for part in self.parts]]


class BatchReply(NamedTuple):
    """A batch on its way back whose wide columns stay in the object store."""

    small: BatchState
    wide: "ObjectRef[DataProto]"
    wide_names: tuple[str, ...]


def share(batch: DataProto) -> DataProto:
    """The batch with what of it is in this process put into the object store once, for all workers; small batches stay."""
    for name in [name for name, block in batch.deferred.items() if not _is_stored(block)]:
        batch.column(name)  # rows of another batch of this process, gathered here
    if batch.local_bytes <= INLINE_BYTES:
        return batch
    stored = batch.select(*(name for name in batch.column_names if name not in batch.deferred))
    block = Block.whole(StoredPart(ray.put(stored), len(stored), stored.widths))
    blocks = {**batch.deferred, **dict.fromkeys(stored.column_names, block)}
    return DataProto.of_state(batch.state(()), blocks)


def pack(method: str, arguments: Arguments) -> Call:
    """On the driver: the call of a method, for all ranks; batches were shared before."""
    parts: list[StoredPart] = []
    blocks: list[Block] = []
    values: list[Any] = [*arguments.args, *arguments.kwargs.values()]
    parcels: dict[int, Parcel] = {}
    for place, value in enumerate(values):
        if isinstance(value, DataProto):
            values[place], parcels[place] = None, _pack_batch(value, parts, blocks)
    body = _dumps((method, values, tuple(arguments.kwargs), parcels))
    if len(body) <= INLINE_BYTES:
        return Call(body, (), tuple(parts), tuple(blocks))
    return Call(b"", (ray.put(body),), tuple(parts), tuple(blocks))


def unpack(message: bytes, *beside: Any) -> tuple[str, bool, Arguments]:
    """On the worker: method, whether the result is collected, and the arguments cut to this rank's rows.

    Args:
        message: see :meth:`Call.arguments_for`.
        beside: what Ray made of the references.
    """
    answers, num_rows = _HEAD.unpack_from(message)
    rows, start = None, _HEAD.size
    if num_rows != _ALL_ROWS:
        rows = np.frombuffer(message, np.int64, num_rows, start)
        start += rows.nbytes
    body, parts = (memoryview(message)[start:], beside) if start < len(message) else (beside[0], beside[1:])
    method, values, names, parcels = pickle.loads(body)
    for place, parcel in parcels.items():
        batch = _unpack_batch(parcel, parts)
        values[place] = batch if rows is None else batch.take(rows)
    first_named = len(values) - len(names)
    named = dict(zip(names, values[first_named:], strict=True))
    return method, bool(answers), Arguments(tuple(values[:first_named]), named)


def pack_reply(result: Any) -> Any:
    """On the worker: what it returns to Ray."""
    if not isinstance(result, DataProto):
        return _dumps((False, result))
    names = result.column_names
    wide = [name for name in names if padded_axis(name) is not None]
    stored = result.select(*wide).fetch() if wide else None
    if stored is None or stored.local_bytes <= INLINE_BYTES:
        return _dumps((True, result.state(names)))
    small = [name for name in names if name not in wide]
    return BatchReply(result.state(small), ray.put(stored), tuple(wide))


def unpack_reply(reply: Any) -> Any:
    """On the driver: the result, the wide columns of a batch left where they are."""
    if isinstance(reply, BatchReply):
        _, length, widths, _ = reply.small
        block = Block.whole(StoredPart(reply.wide, length, widths))
        return DataProto.of_state(reply.small, dict.fromkeys(reply.wide_names, block))
    is_batch, value = pickle.loads(reply)
    return DataProto.of_state(value) if is_batch else value


def _dumps(value: Any) -> bytes:
    """Pickles at the speed of C; what that cannot (functions, classes of a script) goes by value, as Ray does it."""
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return cloudpickle.dumps(value)
    return cloudpickle.dumps(value) if b"__main__" in data else data


def _is_stored(block: Block) -> bool:
    return all(isinstance(part, StoredPart) for part in block.parts)


def _pack_batch(batch: DataProto, parts: list[StoredPart], blocks: list[Block]) -> Parcel:
    names_of: dict[Block, list[str]] = {}
    for name, block in batch.deferred.items():
        names_of.setdefault(block, []).append(name)
    blocks.extend(names_of)
    return batch.state(), tuple(_reference(block, tuple(names), parts) for block, names in names_of.items())


def _reference(block: Block, names: tuple[str, ...], parts: list[StoredPart]) -> _Reference:
    for part in block.parts:
        if isinstance(part, StoredPart) and part not in parts:
            parts.append(part)
    place_of = {id(part): place for place, part in enumerate(parts)}
    places = tuple(place_of[id(part)] for part in block.parts)
    return _Reference(names, places, block.part_of_row, block.row_in_part)


def _unpack_batch(parcel: Parcel, parts: Sequence[Any]) -> DataProto:
    state, references = parcel
    deferred: dict[str, Block] = {}
    for reference in references:
        chosen = tuple(parts[place] for place in reference.places)
        block = Block(chosen, reference.part_of_row, reference.row_in_part)
        deferred.update(dict.fromkeys(reference.names, block))
    return DataProto.of_state(state, deferred)
