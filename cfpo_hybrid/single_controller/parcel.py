"""Batches between driver and Ray workers: small columns travel in the message, wide ones stay in the object store.

A message is pickled once for all ranks of a replica. On the way out, the columns of a batch that lie in the object store
become a :class:`Parcel`: which rows of which stored parts they are. The parts go along as top-level references, which
Ray resolves on the worker's node to views of shared memory; the worker copies rows only when a column is read. On the
way back, columns of one value a row come with the answer; wide ones stay in the store of the worker that wrote them, as
long as it lives, and the driver gets the reference.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray import ObjectRef, cloudpickle

from cfpo_hybrid.protocol import DataProto, JsonValue
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import padded_axis
from cfpo_hybrid.single_controller.split import Arguments

INLINE_BYTES = 64 * 1024
"""Columns up to this size in all go inside the message, where a copy costs less than a trip to the object store."""


class StoredPart:
    """A batch in Ray's object store; reading a column maps it into this process, without a copy on the same node."""

    def __init__(self, ref: "ObjectRef[DataProto]", length: int, widths: Mapping[str, int]) -> None:
        self.ref, self.length, self.widths = ref, length, widths

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> Any:
        return ray.get(self.ref)[name]


class _Reference(NamedTuple):
    """Columns of a parcel that are rows of parts: a Block with places in the list of references for its parts."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    part_of_row: np.ndarray | None
    row_in_part: np.ndarray


class Parcel(NamedTuple):
    """A batch on its way to a worker, some columns of which lie in the object store."""

    local: DataProto | None
    references: tuple[_Reference, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


class BatchReply(NamedTuple):
    """A batch on its way back whose wide columns stay in the object store."""

    small: DataProto | None
    wide: "ObjectRef[DataProto]"
    wide_names: tuple[str, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


def share(batch: DataProto) -> DataProto:
    """The batch with its columns at hand put into the object store once, for all workers; small batches stay."""
    local = batch.local_columns
    if _size(local) <= INLINE_BYTES:
        return batch
    stored = batch.select(*local)
    block = Block.whole(StoredPart(ray.put(stored), len(stored), stored.widths))
    return DataProto.of_blocks({**batch.deferred, **dict.fromkeys(local, block)}, len(batch), batch.widths, batch.meta)


def pack(method: str, arguments: Arguments, answers: bool) -> tuple[Any, list[ObjectRef]]:
    """On the driver: the message of a call, and the references that must travel beside it.

    Args:
        method: name of the worker's method.
        arguments: with batches, shared before.
        answers: whether the driver collects the result.
    """
    refs: list[ObjectRef] = []
    packed = arguments.map_batches(lambda batch: _pack_batch(batch, refs))
    message = _dumps((method, answers, packed.args, packed.kwargs))
    return (message if len(message) <= INLINE_BYTES else ray.put(message)), refs


def unpack(message: bytes, parts: Sequence[DataProto]) -> tuple[str, bool, Arguments]:
    """On the worker: method, whether the result is collected, and the arguments over the resolved references."""
    method, answers, args, kwargs = pickle.loads(message)
    named = {name: _unpack_value(value, parts) for name, value in kwargs.items()}
    return method, answers, Arguments(tuple(_unpack_value(value, parts) for value in args), named)


def pack_reply(result: Any) -> Any:
    """On the worker: what it returns to Ray."""
    if not isinstance(result, DataProto):
        return _dumps(result)
    wide = [name for name in result.column_names if padded_axis(name) is not None]
    if _size({name: result[name] for name in wide}) <= INLINE_BYTES:
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
    return far if reply.small is None else far.with_columns(**reply.small.local_columns)


def _dumps(value: Any) -> bytes:
    """Pickles at the speed of C; what that cannot (functions, classes of a script) goes by value, as Ray does it."""
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):
        return cloudpickle.dumps(value)
    return cloudpickle.dumps(value) if b"__main__" in data else data


def _size(columns: Mapping[str, Any]) -> int:
    return sum(values.nbytes for values in columns.values())


def _pack_batch(batch: DataProto, refs: list[ObjectRef]) -> Parcel | DataProto:
    names_of: dict[Block, list[str]] = {}
    for name, block in batch.deferred.items():
        if all(isinstance(part, StoredPart) for part in block.parts):
            names_of.setdefault(block, []).append(name)
    if not names_of:
        return batch
    far = {name for names in names_of.values() for name in names}
    near = [name for name in batch.column_names if name not in far]
    return Parcel(
        local=batch.select(*near) if near else None,
        references=tuple(_reference(block, tuple(names), refs) for block, names in names_of.items()),
        length=len(batch),
        widths=dict(batch.widths),
        meta=dict(batch.meta),
    )


def _reference(block: Block, names: tuple[str, ...], refs: list[ObjectRef]) -> _Reference:
    places = []
    for part in block.parts:
        if isinstance(part, StoredPart):
            if part.ref not in refs:
                refs.append(part.ref)
            places.append(refs.index(part.ref))
    part_of_row = None if block.part_of_row is None else block.part_of_row.numpy()
    return _Reference(names, tuple(places), part_of_row, block.row_in_part.numpy())


def _unpack_value(value: Any, parts: Sequence[DataProto]) -> Any:
    if not isinstance(value, Parcel):
        return value
    blocks: dict[str, Block] = {}
    for reference in value.references:
        part_of_row = None if reference.part_of_row is None else torch.from_numpy(reference.part_of_row)
        chosen = tuple(parts[place] for place in reference.places)
        block = Block(chosen, part_of_row, torch.from_numpy(reference.row_in_part))
        blocks.update(dict.fromkeys(reference.names, block))
    far = DataProto.of_blocks(blocks, value.length, value.widths, value.meta)
    return far if value.local is None else far.with_columns(**value.local.local_columns)
