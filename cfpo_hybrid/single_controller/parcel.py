"""Batches between driver and Ray workers: small columns travel in the message, wide ones stay in the object store.

On the way out a batch becomes a :class:`Parcel`: the columns at hand, and for the others which rows of which stored
parts they are. The parts themselves go along as top-level references, which Ray resolves on the worker's node to views
of shared memory; the worker copies rows only when a column is read. On the way back, columns of one value a row come
with the answer, wide ones are stored by Ray beside it and the driver keeps the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from cfpo_hybrid.protocol import DataProto, JsonValue
from cfpo_hybrid.protocol.block import Block
from cfpo_hybrid.protocol.columns import padded_axis
from cfpo_hybrid.single_controller.split import Arguments

INLINE_BYTES = 64 * 1024
"""Columns up to this size in all go inside the message, where a copy costs less than a trip to the object store."""


@dataclass(frozen=True, eq=False, slots=True)
class StoredPart:
    """A batch in Ray's object store; reading a column maps it into this process, without a copy on the same node."""

    ref: "ObjectRef[DataProto]"
    length: int
    widths: Mapping[str, int]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, name: str) -> Any:
        return ray.get(self.ref)[name]


@dataclass(frozen=True, slots=True)
class _Reference:
    """Columns of a parcel that are rows of parts: a Block with places in the list of references for its parts."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    part_of_row: np.ndarray | None
    row_in_part: np.ndarray


@dataclass(frozen=True, slots=True)
class Parcel:
    """A batch on its way to a worker."""

    local: DataProto | None
    references: tuple[_Reference, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class BatchReply:
    """A batch on its way back: its small columns, and the names of those that Ray stored beside this reply."""

    small: DataProto | None
    stored: tuple[str, ...]
    length: int
    widths: Mapping[str, int]
    meta: Mapping[str, JsonValue]


def share(batch: DataProto) -> DataProto:
    """The batch with its columns at hand put into the object store once, for all workers; small batches stay."""
    local = batch.local_columns
    if sum(values.nbytes for values in local.values()) <= INLINE_BYTES:
        return batch
    stored = batch.select(*local)
    block = Block.whole(StoredPart(ray.put(stored), len(stored), stored.widths))
    return DataProto.of_blocks({**batch.deferred, **dict.fromkeys(local, block)}, len(batch), batch.widths, batch.meta)


def pack(arguments: Arguments) -> tuple[Arguments, list[ObjectRef]]:
    """Arguments with parcels in the place of batches, and the references that must travel beside them."""
    refs: list[ObjectRef] = []
    return arguments.map_batches(lambda batch: _pack_batch(batch, refs)), refs


def unpack(arguments: Arguments, parts: Sequence[DataProto]) -> Arguments:
    """On the worker: arguments with batches again, over the parts that the references resolved to."""
    return Arguments(
        tuple(_unpack_value(value, parts) for value in arguments.args),
        {name: _unpack_value(value, parts) for name, value in arguments.kwargs.items()},
    )


def pack_reply(batch: DataProto) -> tuple[BatchReply, DataProto | None]:
    """On the worker: the reply, and the wide columns to be stored beside it."""
    small = [name for name in batch.column_names if padded_axis(name) is None]
    wide = [name for name in batch.column_names if padded_axis(name) is not None]
    reply = BatchReply(
        small=batch.select(*small) if small else None,
        stored=tuple(wide),
        length=len(batch),
        widths=dict(batch.widths),
        meta=dict(batch.meta),
    )
    return reply, batch.select(*wide) if wide else None


def unpack_reply(reply: BatchReply, stored: "ObjectRef[Any]") -> DataProto:
    """On the driver: the batch, its wide columns left where they are."""
    block = Block.whole(StoredPart(stored, reply.length, reply.widths))
    far = DataProto.of_blocks(dict.fromkeys(reply.stored, block), reply.length, reply.widths, reply.meta)
    return far if reply.small is None else far.with_columns(**reply.small.local_columns)


def _pack_batch(batch: DataProto, refs: list[ObjectRef]) -> Parcel:
    names_of: dict[Block, list[str]] = {}
    for name, block in batch.deferred.items():
        if all(isinstance(part, StoredPart) for part in block.parts):
            names_of.setdefault(block, []).append(name)
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
        part_of_row = None if reference.part_of_row is None else _index(reference.part_of_row)
        chosen = tuple(parts[place] for place in reference.places)
        blocks.update(dict.fromkeys(reference.names, Block(chosen, part_of_row, _index(reference.row_in_part))))
    if value.local is not None:
        blocks.update(dict.fromkeys(value.local.column_names, Block.whole(value.local)))
    return DataProto.of_blocks(blocks, value.length, value.widths, value.meta)


def _index(array: np.ndarray) -> Tensor:
    return torch.tensor(array)
