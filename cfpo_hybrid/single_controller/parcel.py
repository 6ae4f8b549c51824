"""Batches between driver and Ray workers: small columns travel in the message, wide ones stay in the object store.

A call is pickled once for all ranks, its batches whole; every rank gets its rows beside it and takes them when it reads
a column. Columns in the object store become a :class:`Parcel`: which rows of which stored parts they are. The parts go
along as top-level references, which Ray resolves on the worker's node to views of shared memory. On the way back,
columns of one value a row come with the answer; wide ones stay in the store of the worker that wrote them, as long as it
lives, and the driver gets the reference.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
from ray import ObjectRef, cloudpickle

from cfpo_hybrid.protocol import DataProto, JsonValue
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import Values, padded_axis
from cfpo_hybrid.single_controller.split import Arguments

INLINE_BYTES = 64 * 1024
"""Columns up to this size in all go inside the message, where a copy costs less than a trip to the object store."""


class StoredPart:
    """A batch in Ray's object store; reading a column maps it into this process, without a copy on the same node."""

    def __init__(self, ref: "ObjectRef[DataProto]", length: int, widths: Mapping[str, int]) -> None:
        self.ref, self.length, self.widths = ref, length, widths

    def __len__(self) -> int:
        return self.length

    def column(self, name: str) -> Values:
        """One column, mapped here."""
        return ray.get(self.ref).column(name)


class _Reference(NamedTuple):
    """Columns of a parcel that are rows of parts: a Block with places in the list of references for its parts."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    part_of_row: np.ndarray | None
    row_in_part: np.ndarray | None


class Parcel(NamedTuple):
    """A batch on its way to a worker, some columns of which lie in the object store."""

    local: DataProto | None
    references: tuple[_Reference, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


class Call(NamedTuple):
    """A call on its way to all ranks: its body pickled once, and the stored parts that its parcels refer to."""

    body: "bytes | ObjectRef[bytes]"
    parts: tuple[StoredPart, ...]
    blocks: tuple[Block, ...]

    def arguments_for(self, rows: np.ndarray | None, answers: bool) -> list[Any]:
        """What Ray is to carry to one rank: the message, the body where it is large, and the references.

        Args:
            rows: that the rank works on, None for all; parts that they do not touch are left out, None in their place.
            answers: whether the driver collects the rank's result.
        """
        inline = isinstance(self.body, bytes)
        indices = None if rows is None else rows.tobytes()  # bytes pickle faster than a small array
        message = pickle.dumps((answers, indices, self.body if inline else None), protocol=5)
        refs: list[Any] = [part.ref for part in self.parts]
        if rows is not None and self.parts:
            needed = {id(part) for block in self.blocks for part in block.take(rows).parts}
            refs = [part.ref if id(part) in needed else None for part in self.parts]
        return [message, *refs] if inline else [message, self.body, *refs]


class BatchReply(NamedTuple):
    """A batch on its way back whose wide columns stay in the object store."""

    small: DataProto | None
    wide: "ObjectRef[DataProto]"
    wide_names: tuple[str, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


def share(batch: DataProto) -> DataProto:
    """The batch with what of it is in this process put into the object store once, for all workers; small batches stay."""
    far = {name: block for name, block in batch.deferred.items() if _is_stored(block)}
    here = [name for name in batch.column_names if name not in far]
    if _size({name: batch.column(name) for name in here}) <= INLINE_BYTES:
        return batch
    stored = batch.select(*here)
    block = Block.whole(StoredPart(ray.put(stored), len(stored), stored.widths))
    return DataProto.of_blocks({**far, **dict.fromkeys(here, block)}, len(batch), batch.widths, batch.meta)


def pack(method: str, arguments: Arguments) -> Call:
    """On the driver: the call of a method, for all ranks; batches were shared before."""
    parts: list[StoredPart] = []
    blocks: list[Block] = []
    packed = arguments.map_batches(lambda batch: _pack_batch(batch, parts, blocks))
    body = _dumps((method, packed.args, packed.kwargs))
    return Call(body if len(body) <= INLINE_BYTES else ray.put(body), tuple(parts), tuple(blocks))


def unpack(message: bytes, *beside: Any) -> tuple[str, bool, Arguments]:
    """On the worker: method, whether the result is collected, and the arguments cut to this rank's rows.

    Args:
        message: see :meth:`Call.arguments_for`.
        beside: what Ray made of the references.
    """
    answers, indices, inline = pickle.loads(message)
    rows = None if indices is None else np.frombuffer(bytearray(indices), dtype=np.int64)
    body, parts = (beside[0], beside[1:]) if inline is None else (inline, beside)
    method, args, kwargs = pickle.loads(body)
    values = [_unpack_value(value, rows, parts) for value in (*args, *kwargs.values())]
    return method, answers, Arguments(tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True)))


def pack_reply(result: Any) -> Any:
    """On the worker: what it returns to Ray."""
    if not isinstance(result, DataProto):
        return _dumps(result)
    wide = {name: result[name] for name in result.column_names if padded_axis(name) is not None}
    if _size(wide) <= INLINE_BYTES:
        return _dumps(result)
    small = [name for name in result.column_names if name not in wide]
    near, far = result.select(*small) if small else None, ray.put(result.select(*wide))
    return BatchReply(near, far, tuple(wide), len(result), dict(result.widths), dict(result.meta))


def unpack_reply(reply: Any) -> Any:
    """On the driver: the result, the wide columns of a batch left where they are."""
    if not isinstance(reply, BatchReply):
        return pickle.loads(reply)
    block = Block.whole(StoredPart(reply.wide, reply.length, reply.widths))
    far = DataProto.of_blocks(dict.fromkeys(reply.wide_names, block), reply.length, reply.widths, reply.meta)
    return far if reply.small is None else far.merge(reply.small)


def _dumps(value: Any) -> bytes:
    """Pickles at the speed of C; what that cannot (functions, classes of a script) goes by value, as Ray does it."""
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return cloudpickle.dumps(value)
    return cloudpickle.dumps(value) if b"__main__" in data else data


def _is_stored(block: Block) -> bool:
    return all(isinstance(part, StoredPart) for part in block.parts)


def _size(columns: Mapping[str, Any]) -> int:
    return sum(values.nbytes for values in columns.values())


def _pack_batch(batch: DataProto, parts: list[StoredPart], blocks: list[Block]) -> Parcel | DataProto:
    names_of: dict[Block, list[str]] = {}
    for name, block in batch.deferred.items():
        if _is_stored(block):
            names_of.setdefault(block, []).append(name)
    if not names_of:
        return batch
    blocks.extend(names_of)
    far = {name for names in names_of.values() for name in names}
    near = [name for name in batch.column_names if name not in far]
    return Parcel(
        local=batch.select(*near) if near else None,
        references=tuple(_reference(block, tuple(names), parts) for block, names in names_of.items()),
        length=len(batch),
        widths=dict(batch.widths),
        meta=dict(batch.meta),
    )


def _reference(block: Block, names: tuple[str, ...], parts: list[StoredPart]) -> _Reference:
    for part in block.parts:
        if isinstance(part, StoredPart) and part not in parts:
            parts.append(part)
    places = tuple(place for wanted in block.parts for place, part in enumerate(parts) if part is wanted)
    return _Reference(names, places, block.part_of_row, block.row_in_part)


def _unpack_value(value: Any, rows: np.ndarray | None, parts: Sequence[Any]) -> Any:
    if isinstance(value, Parcel):
        value = _unpack_parcel(value, parts)
    return value.take(rows) if rows is not None and isinstance(value, DataProto) else value


def _unpack_parcel(parcel: Parcel, parts: Sequence[Any]) -> DataProto:
    blocks: dict[str, Block] = {}
    for reference in parcel.references:
        chosen = tuple(parts[place] for place in reference.places)
        block = Block(chosen, reference.part_of_row, reference.row_in_part)
        blocks.update(dict.fromkeys(reference.names, block))
    far = DataProto.of_blocks(blocks, parcel.length, parcel.widths, parcel.meta)
    return far if parcel.local is None else far.merge(parcel.local)
