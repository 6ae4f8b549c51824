"""What a worker knows of its place in its group."""

import socket
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """A worker's place: ranks are contiguous on a node.

    Args:
        role: name of the group, e.g. ``"hybrid"``.
        rank: place in the group.
        world_size: number of workers in the group.
        local_rank: place among the group's workers on this node; with GPUs, the index of this worker's device.
        local_world_size: number of the group's workers on this node.
        node_ip: address of this node.
        master_address: address of rank 0's node, for the rendezvous of process groups.
        master_port: a port that was free there when the group was made.
        job_id: unique name of the group's life, for shared-memory names and temporary folders.
    """

    role: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_ip: str
    master_address: str
    master_port: int
    job_id: str

    def environment(self) -> dict[str, str]:
        """The variables that torch.distributed's ``env://`` rendezvous and vLLM read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
        }


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]
