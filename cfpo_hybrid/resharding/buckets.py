"""Cuts the remote copies of one rank into messages of bounded size. Pure: they match on all ranks without a word.

Step by step a rank sends one bucket to at most one peer and receives one from at most one: peers at distance 1 first, then
2, ... (rank ``r`` sends to ``r + d`` and receives from ``r - d``). All ranks walk the distances in the same order, so a wait
for a peer is always a wait for the same distance and bucket: nothing can deadlock, and the load spreads over all links.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import NamedTuple

from cfpo_hybrid.resharding.plan import Copy, ReshardPlan


class Bucket(NamedTuple):
    """Copies between one pair of ranks that travel as one message, one after the other."""

    peer: int
    copies: tuple[Copy, ...] = ()

    @property
    def volume(self) -> int:
        """Elements."""
        return sum(copy.volume for copy in self.copies)


def schedule(plan: ReshardPlan, rank: int, bucket_elements: int) -> list[tuple[Bucket, Bucket]]:
    """The steps of a rank: the bucket it sends and the bucket it receives, either of which may be empty.

    Args:
        plan: the same on every rank.
        rank: whose steps.
        bucket_elements: the largest message, in elements.
    """
    sent, received = defaultdict[int, list[Copy]](list), defaultdict[int, list[Copy]](list)
    for route in chain.from_iterable(plan.routes):
        if route.source_rank == rank and not route.is_local:
            sent[route.destination_rank].extend(plan.copies(route))
    for route in plan.routes[rank]:
        if not route.is_local:
            received[route.source_rank].extend(plan.copies(route))
    steps: list[tuple[Bucket, Bucket]] = []
    for distance in range(1, plan.world_size):
        to, source = (rank + distance) % plan.world_size, (rank - distance) % plan.world_size
        sends, receives = _buckets(to, sent[to], bucket_elements), _buckets(source, received[source], bucket_elements)
        steps += ((send or Bucket(to), receive or Bucket(source)) for send, receive in zip_longest(sends, receives))
    return steps


def _buckets(peer: int, copies: Iterable[Copy], limit: int) -> Iterator[Bucket]:
    """The copies in order, cut where they must be so that no bucket has more than ``limit`` elements."""
    held: list[Copy] = []
    volume = 0
    for part in (part for copy in copies for part in _split(copy, limit)):
        if held and volume + part.volume > limit:
            yield Bucket(peer, tuple(held))
            held, volume = [], 0
        held.append(part)
        volume += part.volume
    if held:
        yield Bucket(peer, tuple(held))


def _split(copy: Copy, limit: int) -> Iterator[Copy]:
    """The copy itself, or parts of at most ``limit`` elements: rows first, columns where one row is too long."""
    if copy.volume <= limit:
        yield copy
        return
    axis, length = next((axis, size) for axis, size in enumerate(copy.source.area.size) if size > 1)
    count = max(1, limit // (copy.volume // length))
    for first in range(0, length, count):
        yield from _split(copy.along(axis, first, min(count, length - first)), limit)
