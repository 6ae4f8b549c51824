"""Memory that the processes of one host share, with a socket between each two of them for signals. Linux only.

Nothing has a name in a file system: the memory is a file descriptor that is handed over by socket, and the sockets meet
under abstract names. So /dev/shm and its size do not matter, and all is gone with the last process, however that ends.
A signal is a byte in a socket: it wakes who waits for it, and the end of the stream tells at once that a process died.
"""

import logging
import mmap
import os
import secrets
import select
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
import torch.distributed as dist
from torch import Tensor

from cfpo_hybrid.errors import ReshardError

logger = logging.getLogger(__name__)

SLOTS = 2
"""One is read while the other is packed."""
SLOT_BYTES = 4 << 20
"""What is packed is still in the processor's last cache when it is read; larger slots are slower, as smaller ones are."""
PATIENCE = 1800.0
"""Longest wait for a peer, in seconds: it may have been generating until now."""
_MEETING = 60.0
"""Longest wait for a peer that joins, in seconds."""


class HostMemory:
    """Two slots of each rank of this host, which all of its ranks can read.

    Args:
        rank: this process.
        memories: the slots of each rank, one after the other, in bytes.
        sockets: to each other rank.
        patience: longest wait for a peer, in seconds.
    """

    def __init__(
        self, rank: int, memories: Mapping[int, Tensor], sockets: Mapping[int, socket.socket], patience: float
    ) -> None:
        self.rank, self.ranks, self.peers = rank, sorted(memories), sorted(sockets)
        self.slot_bytes = memories[rank].numel() // SLOTS
        self._memories, self._sockets, self._patience = dict(memories), dict(sockets), patience
        self._peer_of = {connection.fileno(): peer for peer, connection in sockets.items()}
        self._poll, self._watched = select.poll(), set[int]()

    def slot(self, rank: int, index: int) -> Tensor:
        """A slot of a rank, as bytes."""
        return self._memories[rank][index * self.slot_bytes : (index + 1) * self.slot_bytes]

    def signal(self, peer: int, number: int) -> None:
        """Sends a number below 256.

        Raises:
            ReshardError: the peer is gone.
        """
        try:
            self._socket(peer).sendall(bytes((number,)))
        except OSError as error:
            raise _gone(peer) from error

    def signals(self, expected: Mapping[int, int], *, block: bool) -> list[tuple[int, int]]:
        """What arrived, as (peer, number), of each peer in the order of its signals.

        Args:
            expected: how many may be taken from each peer; there is at least one peer.
            block: waits for the first one.

        Raises:
            ReshardError: one of these peers is gone, or none of them signals for too long.
        """
        self._watch(expected.keys())
        ready = self._poll.poll(self._patience * 1000 if block else 0)
        if block and not ready:
            raise ReshardError(
                f"rank {self.rank} waited {self._patience:g} s in the weight sync for ranks {sorted(expected)} of its "
                "host; look at what they do, or at the error that one of them raised first"
            )
        peers = [self._peer_of[descriptor] for descriptor, _ in ready]
        return [(peer, number) for peer in peers for number in self._receive(peer, expected[peer])]

    def close(self) -> None:
        """Leaves; peers that still wait for this rank raise. Safe to call twice."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        self._poll, self._watched = select.poll(), set()

    def _watch(self, peers: AbstractSet[int]) -> None:
        """A peer that is not expected may be ahead, with signals of its next run."""
        for peer in self._watched - peers:
            self._poll.unregister(self._socket(peer))
        for peer in peers - self._watched:
            self._poll.register(self._socket(peer), select.POLLIN)
        self._watched = set(peers)

    def _receive(self, peer: int, count: int) -> bytes:
        try:
            numbers = self._socket(peer).recv(count)
        except OSError as error:
            raise _gone(peer) from error
        if not numbers:
            raise _gone(peer)
        return numbers

    def _socket(self, peer: int) -> socket.socket:
        if peer not in self._sockets:
            raise ReshardError(f"rank {self.rank} has left the weight sync after an earlier error; start the run anew")
        return self._sockets[peer]


def join_host(ranks_per_node: int, slot_bytes: int = SLOT_BYTES, patience: float = PATIENCE) -> HostMemory | None:
    """Shares memory between the ranks of each host; collective over the default process group.

    None on all ranks where that is not possible, with a warning that says why.

    Args:
        ranks_per_node: consecutive ranks that share a machine.
        slot_bytes: largest parcel; each rank takes two of them, rounded down to 64 bytes.
        patience: longest wait for a peer in a weight sync, in seconds.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    first = rank - rank % ranks_per_node
    ranks = range(first, min(first + ranks_per_node, world_size))
    if min(ranks_per_node, world_size) == 1 or sys.platform != "linux":
        return None
    name = torch.frombuffer(bytearray(secrets.token_bytes(16)), dtype=torch.uint8)
    dist.broadcast(name, src=0)
    meeting = _Meeting(name.numpy().tobytes().hex(), rank, ranks, SLOTS * max(64, slot_bytes // 64 * 64))
    try:
        if _all_can(meeting.open) and _all_can(meeting.join):
            return HostMemory(rank, meeting.memories, meeting.sockets, patience)
        meeting.hang_up()
        return None
    finally:
        meeting.close()


class _Meeting:
    """Where the ranks of a host find each other: lower ranks are called by higher ones."""

    def __init__(self, name: str, rank: int, ranks: Sequence[int], size: int) -> None:
        self._name, self._rank, self._ranks, self._size = name, rank, ranks, size
        self._door = socket.socket(socket.AF_UNIX)
        self._memory = -1
        self.memories: dict[int, Tensor] = {}
        self.sockets: dict[int, socket.socket] = {}

    def open(self) -> None:
        """Makes the memory, all of it at once: what is short is known now and not when it is written."""
        self._memory = os.memfd_create("cfpo-reshard")
        os.posix_fallocate(self._memory, 0, self._size)
        self.memories[self._rank] = self._map(self._memory)
        self._door.settimeout(_MEETING)
        self._door.bind(self._address(self._rank))
        self._door.listen(len(self._ranks))

    def join(self) -> None:
        """Meets every other rank and exchanges the memories; their doors are open."""
        for peer in self._ranks:
            if peer < self._rank:
                self.sockets[peer] = socket.socket(socket.AF_UNIX)
                self.sockets[peer].settimeout(_MEETING)
                self.sockets[peer].connect(self._address(peer))
                self.sockets[peer].sendall(self._rank.to_bytes(4))
        while len(self.sockets) < len(self._ranks) - 1:
            caller, _ = self._door.accept()
            caller.settimeout(_MEETING)
            self.sockets[int.from_bytes(caller.recv(4))] = caller
        for connection in self.sockets.values():
            socket.send_fds(connection, [b"."], [self._memory])
        for peer, connection in self.sockets.items():
            memories = socket.recv_fds(connection, 1, 1)[1]
            if not memories:
                raise ConnectionError(f"rank {peer} hung up")
            self.memories[peer] = self._map(memories[0])
            os.close(memories[0])

    def hang_up(self) -> None:
        """Ends all connections."""
        for connection in self.sockets.values():
            connection.close()

    def close(self) -> None:
        """Shuts the door; maps and connections live on."""
        self._door.close()
        if self._memory >= 0:
            os.close(self._memory)

    def _map(self, memory: int) -> Tensor:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return torch.frombuffer(mmap.mmap(memory, self._size, flags=flags), dtype=torch.uint8)

    def _address(self, rank: int) -> str:
        return f"\0cfpo-{self._name}-{rank}"


def _all_can(act: Callable[[], None]) -> bool:
    """Whether a step succeeds on all ranks; collective."""
    failed = torch.zeros(1)
    try:
        act()
    except OSError as error:
        failed += 1
        logger.warning(
            "rank %d shares no memory with the other ranks of its host (%s); weights move over gloo, more slowly",
            dist.get_rank(),
            error,
        )
    dist.all_reduce(failed)
    return not failed.item()


def _gone(peer: int) -> ReshardError:
    return ReshardError(f"rank {peer} died or gave up during the weight sync; look for its own error or exit code")
