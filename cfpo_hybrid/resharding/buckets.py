"""Cuts the remote copies of one rank into steps of bounded size. Pure: steps match on all ranks without a message.

Step by step a rank sends to at most one peer and receives from at most one: peers at distance 1 first, then 2, ...
(rank ``r`` sends to ``r + d`` and receives from ``r - d``). All ranks walk the distances in the same order, so a wait
for a peer is always a wait for the same distance and chunk: nothing can deadlock, and the load spreads over all links.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Rectangle


@dataclass(frozen=True, slots=True)
class Bucket:
    """Copies between one pair of ranks that travel as one message, one after the other."""

    peer: int
    copies: tuple[Copy, ...]

    @property
    def volume(self) -> int:
        """Elements."""
        return sum(copy.volume for copy in self.copies)


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank sends and receives at one time."""

    send: Bucket | None
    receive: Bucket | None


def schedule(plan: ReshardPlan, rank: int, bucket_elements: int, without: Collection[int] = ()) -> list[Step]:
    """The steps of a rank.

    Args:
        plan: the same on every rank.
        rank: whose steps.
        bucket_elements: the largest message, in elements.
        without: peers that are reached in another way; they leave this rank out too.
    """
    sent, received = defaultdict[int, list[Copy]](list), defaultdict[int, list[Copy]](list)
    for copy in plan.sent_by(rank):
        sent[copy.destination_rank].append(copy)
    for copy in plan.received_by(rank):
        received[copy.source_rank].append(copy)
    steps: list[Step] = []
    for distance in range(1, plan.world_size):
        to, source = (rank + distance) % plan.world_size, (rank - distance) % plan.world_size
        sends = [] if to in without else _buckets(sent[to], to, bucket_elements)
        receives = [] if source in without else _buckets(received[source], source, bucket_elements)
        for index in range(max(len(sends), len(receives))):
            send = sends[index] if index < len(sends) else None
            receive = receives[index] if index < len(receives) else None
            steps.append(Step(send, receive))
    return steps


def batches(copies: Iterable[Copy], limit: int) -> Iterator[tuple[Copy, ...]]:
    """The copies in order, cut where they must be so that no batch has more than ``limit`` elements."""
    batch: list[Copy] = []
    volume = 0
    for copy in copies:
        for part in _split(copy, limit):
            if batch and volume + part.volume > limit:
                yield tuple(batch)
                batch, volume = [], 0
            batch.append(part)
            volume += part.volume
    if batch:
        yield tuple(batch)


def _buckets(copies: Sequence[Copy], peer: int, limit: int) -> list[Bucket]:
    return [Bucket(peer, batch) for batch in batches(copies, limit)]


def _split(copy: Copy, limit: int) -> Iterator[Copy]:
    """The copy itself, or parts of at most ``limit`` elements: rows first, columns where one row is too long."""
    if copy.volume <= limit:
        yield copy
        return
    axis = next(axis for axis, size in enumerate(copy.source.size) if size > 1)
    slice_volume = copy.volume // copy.source.size[axis]
    count = max(1, limit // slice_volume)
    for first in range(0, copy.source.size[axis], count):
        size = min(count, copy.source.size[axis] - first)
        yield from _split(
            Copy(
                copy.source_rank,
                copy.source_name,
                _cut(copy.source, axis, first, size),
                copy.destination_rank,
                copy.destination_name,
                _cut(copy.destination, axis, first, size),
            ),
            limit,
        )


def _cut(area: Rectangle, axis: int, first: int, size: int) -> Rectangle:
    start, sizes = list(area.start), list(area.size)
    start[axis] += first
    sizes[axis] = size
    return Rectangle(tuple(start), tuple(sizes))
