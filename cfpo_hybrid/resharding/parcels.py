"""Moves parcels between the processes of one host through memory that they share.

A sender packs a parcel into the next of its slots and signals its readers; each copies it from there straight into its
parameters and signals back. Ranks that need the same bytes from the same sender read one parcel. Everybody reads
whenever there is something to read, so no order of parcels can deadlock.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.resharding.buckets import batches
from cfpo_hybrid.resharding.host_memory import SLOTS, HostMemory
from cfpo_hybrid.resharding.packing import Slot, pack, slots, unpack
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.stats import ReshardStats

_READ = SLOTS
"""Signals below it say which slot is packed; this and those above, which has been read."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Copies that are packed once, one after the other; their destination is that of the first of the readers."""

    readers: tuple[int, ...]
    copies: tuple[Copy, ...]

    @property
    def volume(self) -> int:
        """Elements."""
        return sum(copy.volume for copy in self.copies)


def parcels(plan: ReshardPlan, sender: int, ranks: Sequence[int], limit: int) -> list[Parcel]:
    """What a sender packs for other ranks, in order; its nearest successors come first, which spreads the load.

    Args:
        plan: the same on every rank.
        sender: whose parcels.
        ranks: those that share memory.
        limit: the largest parcel, in elements.
    """
    routes = defaultdict(list)
    for route in (route for rank in ranks for route in plan.routes[rank]):
        if route.source_rank == sender and not route.is_local:
            # All of a route but its ranks says what is read.
            routes[route.cargo, route.offer, route.first, route.last].append(route)
    together: dict[tuple[int, ...], list[Copy]] = defaultdict(list)
    for same in routes.values():
        readers = tuple(route.destination_rank for route in same)
        together[readers].extend(plan.cargos[same[0].cargo].copies(same[0]))
    nearest = sorted(together, key=lambda readers: min((rank - sender) % plan.world_size for rank in readers))
    return [Parcel(readers, copies) for readers in nearest for copies in batches(together[readers], limit)]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A parcel in shared memory, and the parameters of this rank that it is packed from or read into."""

    readers: tuple[int, ...]
    nbytes: int
    contents: list[Slot]


class ParcelExchange:
    """The parcels that a rank packs and reads, as often as asked.

    Args:
        plan: the same on every rank.
        dtype: of the destination parameters, and of parcels.
        host: the memory that this rank shares.
    """

    def __init__(self, plan: ReshardPlan, dtype: torch.dtype, host: HostMemory) -> None:
        self._host, self._dtype = host, dtype
        limit = host.slot_bytes // dtype.itemsize
        # A sender takes its slots in turn, from the first one in every run, so its readers know where a parcel lies.
        sent = {rank: list(enumerate(parcels(plan, rank, host.ranks, limit))) for rank in host.ranks}
        self._packed = [self._placed(host.rank, index, parcel) for index, parcel in sent.pop(host.rank)]
        self._read = {
            peer: [self._placed(peer, index, parcel) for index, parcel in of_peer if host.rank in parcel.readers]
            for peer, of_peer in sent.items()
        }
        signals = Counter({peer: len(placed) for peer, placed in self._read.items()})
        signals.update(reader for parcel in self._packed for reader in parcel.readers)
        self._signals = dict(+signals)

    def _placed(self, sender: int, index: int, parcel: Parcel) -> _Placed:
        if sender == self._host.rank:
            areas = ((copy.source_name, copy.source) for copy in parcel.copies)
        else:
            areas = ((copy.destination_name, copy.destination) for copy in parcel.copies)
        buffer = self._host.slot(sender, index % SLOTS).view(self._dtype)
        return _Placed(parcel.readers, parcel.volume * self._dtype.itemsize, slots(areas, buffer))

    def run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor], stats: ReshardStats) -> None:
        """Packs and reads until all parcels of this rank have been read by those that need them.

        Raises:
            ReshardError: a peer died or kept this rank waiting for too long.
        """
        to_pack, to_read = deque(self._packed), {peer: deque(placed) for peer, placed in self._read.items()}
        # Signals to come from each peer; the next slot; readers that each slot waits for.
        due, slot, reading = dict(self._signals), 0, [0] * SLOTS
        while due:
            packs = bool(to_pack) and not reading[slot]
            if packs:
                reading[slot] = self._pack(to_pack.popleft(), slot, sources, stats)
                slot = (slot + 1) % SLOTS
            with stats.timed("move"):
                signals = self._host.signals(due, block=not packs)
            for peer, signal in signals:
                due[peer] -= 1
                if not due[peer]:
                    del due[peer]
                if signal >= _READ:
                    reading[signal - _READ] -= 1
                    continue
                self._unpack(to_read[peer].popleft(), destinations, stats)
                self._host.signal(peer, _READ + signal)

    def _pack(self, parcel: _Placed, slot: int, sources: Mapping[str, Tensor], stats: ReshardStats) -> int:
        """The number of its readers."""
        with stats.timed("pack"):
            pack(parcel.contents, sources)
        for reader in parcel.readers:
            self._host.signal(reader, slot)
        stats.bytes_packed += parcel.nbytes
        stats.bytes_sent += parcel.nbytes * len(parcel.readers)
        return len(parcel.readers)

    def _unpack(self, parcel: _Placed, destinations: Mapping[str, Tensor], stats: ReshardStats) -> None:
        with stats.timed("unpack"):
            unpack(parcel.contents, destinations)
        stats.bytes_received += parcel.nbytes
