"""Carries out a reshard plan: strided copies at home, parcels within a host, messages between processes.

Each byte takes the shortest way there is: within a process it is copied once, to a process that shares memory with this
one (CPU only) it goes through that memory, to all others in a message. Numbers are cast to the destination's dtype at
the source.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.buckets import schedule
from cfpo_hybrid.resharding.host_memory import SLOTS, HostMemory
from cfpo_hybrid.resharding.messages import MessageExchange
from cfpo_hybrid.resharding.packing import Cut
from cfpo_hybrid.resharding.parcels import ParcelExchange
from cfpo_hybrid.resharding.plan import ReshardPlan
from cfpo_hybrid.resharding.stats import ReshardStats


class Resharder:
    """Carries out one plan as often as asked; what depends on the plan alone is computed once.

    Args:
        plan: the same on every rank of the default process group; that may be absent when the plan is local.
        rank: this process.
        dtype: of the destination parameters, and of messages.
        bucket_bytes: half of the extra memory that messages and shared memory may take.
        host: memory shared with other ranks; without it all goes in messages.

    Raises:
        ReshardError: the bucket is too small for a single number.
    """

    def __init__(
        self, plan: ReshardPlan, *, rank: int, dtype: torch.dtype, bucket_bytes: int, host: HostMemory | None = None
    ) -> None:
        # Four messages and the slots of shared memory together are two buckets.
        shared = host.slot_bytes * SLOTS if host else 0
        elements = (2 * bucket_bytes - shared) // 4 // dtype.itemsize
        if elements < 1:
            raise ReshardError(f"a bucket of {bucket_bytes} bytes holds no number of {dtype}; use 1 MiB or more")
        self._dtype, self._host = dtype, host
        self._local = [
            (Cut.at(copy.source_name, copy.source), Cut.at(copy.destination_name, copy.destination))
            for copy in plan.local(rank)
        ]
        self._parcels = ParcelExchange(plan, dtype, host) if host else None
        self._steps = schedule(plan, rank, elements, without=host.peers if host else ())

    @torch.no_grad()
    def run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor]) -> ReshardStats:
        """Writes the source parameters into the destination parameters, in place. Collective unless the plan is local.

        Args:
            sources: this rank's source parameters by name.
            destinations: this rank's destination parameters by name.

        Raises:
            ReshardError: a parameter of the plan is absent or has another shape, or a rank of this host died.
        """
        stats, begin = ReshardStats(), time.perf_counter()
        with ExitStack() as on_failure:
            if self._host:
                on_failure.callback(self._host.close)  # the others would wait for this rank
            self._run(sources, destinations, stats)
            on_failure.pop_all()
        stats.seconds = time.perf_counter() - begin
        return stats

    def _run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor], stats: ReshardStats) -> None:
        with stats.timed("local"):
            for source, destination in self._local:
                target = destination.of(destinations)
                target.copy_(source.of(sources))
                stats.bytes_local += target.nbytes
        if self._parcels:
            self._parcels.run(sources, destinations, stats)
        if self._steps:
            device = next(iter(sources.values())).device  # a rank may have nothing to receive
            MessageExchange(self._steps, self._dtype, device, stats).run(sources, destinations)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # without it the time would be that of launching the copies
