"""Moves buckets between ranks as batched point-to-point messages, over gloo or NCCL.

Extra memory is four buffers of one message: two that are packed or sent, two that are received or unpacked, so that
packing a message overlaps moving the one before.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.resharding.buckets import Step
from cfpo_hybrid.resharding.packing import pack, slots, unpack
from cfpo_hybrid.resharding.stats import ReshardStats


class MessageExchange:
    """The messages of one run, two steps in flight at a time.

    Args:
        steps: of this rank.
        dtype: of messages.
        device: of the parameters.
        stats: what is written down.
    """

    def __init__(self, steps: Sequence[Step], dtype: torch.dtype, device: torch.device, stats: ReshardStats) -> None:
        self._steps, self._stats = steps, stats
        largest_send = max((step.send.volume for step in steps if step.send), default=0)
        largest_receive = max((step.receive.volume for step in steps if step.receive), default=0)
        self._send = [torch.empty(largest_send, dtype=dtype, device=device) for _ in range(2)]
        self._receive = [torch.empty(largest_receive, dtype=dtype, device=device) for _ in range(2)]

    def run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor]) -> None:
        """Sends from the sources and writes what arrives into the destinations."""
        moving: tuple[int, Step, list[dist.Work]] | None = None
        for index, step in enumerate(self._steps):
            started = (index % 2, step, self._start(index % 2, step, sources))
            if moving:
                self._finish(*moving, destinations)
            moving = started
        if moving:
            self._finish(*moving, destinations)

    def _start(self, slot: int, step: Step, sources: Mapping[str, Tensor]) -> list[dist.Work]:
        operations: list[dist.P2POp] = []
        if step.receive:
            buffer = self._receive[slot][: step.receive.volume]
            operations.append(dist.P2POp(dist.irecv, buffer, step.receive.peer))
            self._stats.bytes_received += buffer.nbytes
        if step.send:
            buffer = self._send[slot][: step.send.volume]
            with self._stats.timed("pack"):
                pack(slots(((copy.source_name, copy.source) for copy in step.send.copies), buffer), sources)
            operations.append(dist.P2POp(dist.isend, buffer, step.send.peer))
            self._stats.bytes_packed += buffer.nbytes
            self._stats.bytes_sent += buffer.nbytes
        with self._stats.timed("move"):
            return dist.batch_isend_irecv(operations)

    def _finish(self, slot: int, step: Step, works: list[dist.Work], destinations: Mapping[str, Tensor]) -> None:
        with self._stats.timed("move"):
            for work in works:
                work.wait()
        if step.receive:
            with self._stats.timed("unpack"):
                areas = ((copy.destination_name, copy.destination) for copy in step.receive.copies)
                unpack(slots(areas, self._receive[slot]), destinations)
