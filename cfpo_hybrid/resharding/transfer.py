"""Carries out a reshard plan: strided copies at home, batched point-to-point messages between processes.

Extra memory is four buffers of half a bucket: two that are packed or sent, two that are received or unpacked, so that
packing a message overlaps moving the one before. Numbers are cast to the destination's dtype when they are packed.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.resharding.buckets import Bucket, Step, schedule
from cfpo_hybrid.resharding.plan import Copy, ReshardPlan
from cfpo_hybrid.resharding.shard_spec import Rectangle


@dataclass(slots=True)
class ReshardStats:
    """What one reshard did on one rank; ``seconds`` is all of it, the others its parts."""

    bytes_local: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("local", "pack", "move", "unpack"), 0.0))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of a block to a part."""
        begin = time.perf_counter()
        yield
        self.parts[part] += time.perf_counter() - begin


class Resharder:
    """Carries out one plan as often as asked; what depends on the plan alone is computed once.

    Args:
        plan: the same on every rank of the default process group; that may be absent when the plan is local.
        rank: this process.
        dtype: of the destination parameters, and of messages.
        bucket_bytes: half of the extra memory that messages may take.

    Raises:
        ReshardError: the bucket is too small for a single number.
    """

    def __init__(self, plan: ReshardPlan, *, rank: int, dtype: torch.dtype, bucket_bytes: int) -> None:
        elements = bucket_bytes // 2 // dtype.itemsize
        if elements < 1:
            raise ReshardError(f"a bucket of {bucket_bytes} bytes holds no number of {dtype}; use 1 MiB or more")
        self._dtype = dtype
        self._local: list[Copy] = plan.local(rank)
        self._steps: list[Step] = schedule(plan, rank, elements)

    @torch.no_grad()
    def run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor]) -> ReshardStats:
        """Writes the source parameters into the destination parameters, in place. Collective unless the plan is local.

        Args:
            sources: this rank's source parameters by name.
            destinations: this rank's destination parameters by name.

        Raises:
            ReshardError: a parameter of the plan is absent or has another shape.
        """
        stats, begin = ReshardStats(), time.perf_counter()
        with stats.timed("local"):
            for copy in self._local:
                target = _view(destinations, copy.destination_name, copy.destination)
                target.copy_(_view(sources, copy.source_name, copy.source))
                stats.bytes_local += copy.volume * target.element_size()
        if self._steps:
            device = next(iter(sources.values())).device  # a rank may have nothing to receive
            _Exchange(self._steps, self._dtype, device, stats).run(sources, destinations)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # without it the time would be that of launching the copies
        stats.seconds = time.perf_counter() - begin
        return stats


class _Exchange:
    """The messages of one run, two steps in flight at a time."""

    def __init__(self, steps: list[Step], dtype: torch.dtype, device: torch.device, stats: ReshardStats) -> None:
        self._steps, self._stats = steps, stats
        largest_send = max((step.send.volume for step in steps if step.send), default=0)
        largest_receive = max((step.receive.volume for step in steps if step.receive), default=0)
        self._send = [torch.empty(largest_send, dtype=dtype, device=device) for _ in range(2)]
        self._receive = [torch.empty(largest_receive, dtype=dtype, device=device) for _ in range(2)]

    def run(self, sources: Mapping[str, Tensor], destinations: Mapping[str, Tensor]) -> None:
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
                for copy, part in _slots(step.send, buffer):
                    part.copy_(_view(sources, copy.source_name, copy.source))
            operations.append(dist.P2POp(dist.isend, buffer, step.send.peer))
            self._stats.bytes_sent += buffer.nbytes
        with self._stats.timed("move"):
            return dist.batch_isend_irecv(operations)

    def _finish(self, slot: int, step: Step, works: list[dist.Work], destinations: Mapping[str, Tensor]) -> None:
        with self._stats.timed("move"):
            for work in works:
                work.wait()
        if step.receive:
            with self._stats.timed("unpack"):
                for copy, part in _slots(step.receive, self._receive[slot]):
                    _view(destinations, copy.destination_name, copy.destination).copy_(part)


def _slots(bucket: Bucket, buffer: Tensor) -> Iterator[tuple[Copy, Tensor]]:
    """Each copy of a bucket with its place in the message, in the rectangle's shape."""
    offset = 0
    for copy in bucket.copies:
        yield copy, buffer[offset : offset + copy.volume].view(copy.source.size)
        offset += copy.volume


def _view(parameters: Mapping[str, Tensor], name: str, area: Rectangle) -> Tensor:
    if name not in parameters:
        raise ReshardError(f"parameter {name} of the reshard plan does not exist in this rank's engine")
    view = parameters[name][area.slices]
    if tuple(view.shape) != area.size:
        raise ReshardError(f"parameter {name} of shape {tuple(parameters[name].shape)} has no rectangle {area}")
    return view
