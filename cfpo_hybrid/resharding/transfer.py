"""Carries out a reshard plan: strided copies at home, buckets between processes over gloo or NCCL.

Within a process each byte is copied once, to others it goes in a message. Numbers are cast to the destination's dtype at
the source. Filling a bucket overlaps moving the one before.

The remote copies of a rank are cut into messages of bounded size, which match on all ranks without a word. Step by step a
rank sends one bucket to at most one peer and receives one from at most one: peers at distance 1 first, then 2, ... (rank
``r`` sends to ``r + d`` and receives from ``r - d``). All ranks walk the distances in the same order, so a wait for a peer
is always a wait for the same distance and bucket: nothing can deadlock, and the load spreads over all links.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, cycle, zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Region

Parameters = Mapping[str, Float[Tensor, "..."]]
"""By name."""

IN_FLIGHT = 2
"""Steps that have memory at a time: one is filled while the one before moves."""

PARTS = ("local", "pack", "move", "unpack")
"""Copies at home, filling buckets, waiting for other ranks, emptying buckets."""


@dataclass(slots=True)
class ReshardStats:
    """What one reshard did on one rank.

    Bytes are as they arrive, so in the destination's dtype; ``seconds`` is all of the time, ``parts`` are its parts.
    """

    bytes_local: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of a block to a part."""
        begin = time.perf_counter()
        yield
        self.parts[part] += time.perf_counter() - begin

    def add(self, other: "ReshardStats") -> None:
        """Counts another reshard of this rank in."""
        self.bytes_local += other.bytes_local
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.seconds += other.seconds
        for part, seconds in other.parts.items():
            self.parts[part] += seconds


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

    No bucket has more than ``bucket_elements`` elements.
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


class Resharder:
    """Carries out one plan as often as asked; what depends on the plan alone is computed once.

    Args:
        plan: the same on every rank of the default process group; that may be absent when the plan is local.
        rank: this process.
        dtype: of the destination parameters, and of messages.
        bucket_bytes: extra memory for what is sent, and as much for what is received.

    Raises:
        ReshardError: the bucket is too small for a single number.
    """

    def __init__(self, plan: ReshardPlan, *, rank: int, dtype: torch.dtype, bucket_bytes: int) -> None:
        elements = bucket_bytes // IN_FLIGHT // dtype.itemsize
        if elements < 1:
            raise ReshardError(f"a bucket of {bucket_bytes} bytes holds no number of {dtype}; use 1 MiB or more")
        self.dtype = dtype
        self._local = [copy for route in plan.routes[rank] if route.is_local for copy in plan.copies(route)]
        self._steps = schedule(plan, rank, elements)

    @torch.no_grad()
    def run(self, sources: Parameters, destinations: Parameters) -> ReshardStats:
        """Writes the source parameters into the destination parameters, in place.

        Collective over the ranks that hold or need anything, unless the plan is local.

        Args:
            sources: this rank's source parameters; empty where it has none.
            destinations: this rank's destination parameters; empty where it has none.

        Raises:
            ReshardError: a parameter of the plan is absent or has another shape.
            RuntimeError: torch.distributed lost another rank.
        """
        stats, begin = ReshardStats(), time.perf_counter()
        with stats.timed("local"):
            for copy in self._local:
                target = _view(destinations, copy.destination)
                target.copy_(_view(sources, copy.source))
                stats.bytes_local += target.nbytes
        if self._steps:
            self._exchange(sources, destinations, stats)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # without it the time would be that of launching the copies
        stats.seconds = time.perf_counter() - begin
        return stats

    def _exchange(self, sources: Parameters, destinations: Parameters, stats: ReshardStats) -> None:
        """All messages, step by step."""
        device = next(chain(sources.values(), destinations.values())).device
        largest = [max(bucket.volume for bucket in way) for way in zip(*self._steps, strict=True)]
        memory = [[torch.empty(size, dtype=self.dtype, device=device) for size in largest] for _ in range(IN_FLIGHT)]
        moving: deque[tuple[Bucket, Tensor, list[dist.Work]]] = deque()
        for (send, receive), (outgoing, incoming) in zip(self._steps, cycle(memory), strict=False):
            outgoing, incoming = outgoing[: send.volume], incoming[: receive.volume]
            with stats.timed("pack"):
                for copy, place in _places(outgoing, send):
                    place.copy_(_view(sources, copy.source))
            operations = [dist.P2POp(dist.irecv, incoming, receive.peer)] if receive.copies else []
            operations += [dist.P2POp(dist.isend, outgoing, send.peer)] if send.copies else []
            with stats.timed("move"):
                moving.append((receive, incoming, dist.batch_isend_irecv(operations)))
            stats.bytes_sent += outgoing.nbytes
            stats.bytes_received += incoming.nbytes
            if len(moving) == IN_FLIGHT:
                _finish(*moving.popleft(), destinations, stats)
        while moving:
            _finish(*moving.popleft(), destinations, stats)


def _finish(
    receive: Bucket, incoming: Tensor, works: Iterable[dist.Work], destinations: Parameters, stats: ReshardStats
) -> None:
    """Waits for the messages of a step and writes what arrived."""
    with stats.timed("move"):
        for work in works:
            work.wait()
    with stats.timed("unpack"):
        for copy, place in _places(incoming, receive):
            _view(destinations, copy.destination).copy_(place)


def _places(buffer: Float[Tensor, " element"], bucket: Bucket) -> Iterator[tuple[Copy, Tensor]]:
    """Each copy of a bucket and its place in the bucket's memory, in its shape."""
    begin = 0
    for copy in bucket.copies:
        yield copy, buffer[begin : begin + copy.volume].view(copy.source.area.size)
        begin += copy.volume


def _view(parameters: Parameters, region: Region) -> Float[Tensor, "..."]:
    """A region of this rank's parameters.

    Raises:
        ReshardError: no such parameter, or one that is too small.
    """
    if region.name not in parameters:
        raise ReshardError(f"parameter {region.name} of the reshard plan does not exist in this rank's engine")
    view = parameters[region.name][region.area.slices]
    if view.shape != region.area.size:
        shape = tuple(parameters[region.name].shape)
        raise ReshardError(f"parameter {region.name} of shape {shape} has no rectangle {region.area}")
    return view
