"""What a worker group asks of a cluster, where its workers then are, and what each of them is told of that."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfpo_hybrid.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcePool:
    """Workers packed per node; ranks are contiguous on a node.

    Args:
        num_nodes: nodes to use.
        workers_per_node: workers on each of them.
        cpus_per_worker: logical CPUs that Ray books for each worker; may be a fraction. Workers that book nothing at
            all run on the driver's node.
        gpus_per_worker: 0 or 1; a worker drives one device.

    Raises:
        ConfigError: a number out of range.
    """

    num_nodes: int = 1
    workers_per_node: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.num_nodes < 1 or self.workers_per_node < 1:
            problems.append(
                f"{self.num_nodes} nodes x {self.workers_per_node} workers is no worker at all; both must be at least 1"
            )
        if self.cpus_per_worker < 0:
            problems.append(f"cpus_per_worker={self.cpus_per_worker} must not be negative; 0.5 is allowed")
        if self.gpus_per_worker not in (0, 1):
            problems.append(f"gpus_per_worker={self.gpus_per_worker} must be 0 or 1: a worker drives one device")
        if self.books_nothing and self.num_nodes > 1:
            problems.append(
                f"workers without CPUs or GPUs run on the driver's node only, not on {self.num_nodes} nodes"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.num_nodes * self.workers_per_node

    @property
    def books_nothing(self) -> bool:
        """Whether the workers take no CPU and no GPU from the cluster."""
        return self.cpus_per_worker == 0 and self.gpus_per_worker == 0

    @property
    def node_bundle(self) -> dict[str, float]:
        """What the workers of one node need together, by Ray's resource names."""
        bundle = {"CPU": self.workers_per_node * self.cpus_per_worker}
        if self.gpus_per_worker:
            bundle["GPU"] = float(self.workers_per_node * self.gpus_per_worker)
        return bundle

    def check(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Whether enough of the nodes could hold a bundle each, were they idle.

        Args:
            nodes: total resources of each node of the cluster, by Ray's names.

        Raises:
            ConfigError: too few; the message says what was asked and what each node has.
        """
        fitting = self._fitting(nodes)
        if fitting < self.num_nodes:
            raise ConfigError(
                f"the cluster cannot hold {self.describe()}: {fitting} of its {len(nodes)} nodes could; the nodes have "
                f"{_of_all(nodes)}. Ask for fewer workers per node, fewer CPUs per worker, or add nodes"
            )

    def missing(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """What these nodes (as for :meth:`check`) lack, for who waits; empty where they lack nothing.

        Example: ``1 more node of 8 CPU, 8 GPU or above; there are 2: 8 CPU, 8 GPU; 4 CPU``.
        """
        lacking = self.num_nodes - self._fitting(nodes)
        if lacking <= 0:
            return ""
        plural = "" if lacking == 1 else "s"
        there = f"there are {len(nodes)}: {_of_all(nodes)}" if nodes else "there are none"
        return f"{lacking} more node{plural} of {_amounts(self.node_bundle)} or above; {there}"

    def copies_on(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many such pools the nodes (as for :meth:`check`) could hold side by side, were they idle."""
        return sum(map(self._bundles_on, nodes)) // self.num_nodes

    def describe(self) -> str:
        """For messages: ``2 nodes x 4 workers (each node: 4 CPU, 4 GPU)``."""
        nodes = f"{self.num_nodes} node{'' if self.num_nodes == 1 else 's'}"
        workers = f"{self.workers_per_node} worker{'' if self.workers_per_node == 1 else 's'}"
        return f"{nodes} x {workers} (each node: {_amounts(self.node_bundle)})"

    def _fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        return sum(self._bundles_on(node) > 0 for node in nodes)

    def _bundles_on(self, node: Mapping[str, float]) -> int:
        return int(min(node.get(kind, 0.0) // need for kind, need in self.node_bundle.items() if need > 0))


def _of_all(nodes: Sequence[Mapping[str, float]]) -> str:
    return "; ".join(map(_amounts, nodes)) or "nothing"


def _amounts(resources: Mapping[str, float]) -> str:
    amounts = {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {kind}" for kind, amount in amounts.items() if amount) or "no CPU or GPU"


@dataclass(frozen=True, slots=True)
class HostInfo:
    """Where a worker's process is.

    Args:
        node_id: the cluster's name of the node.
        node_ip: its address.
        port: a port that is free there.
        gpu_ids: the devices that are booked for the worker.
    """

    node_id: str
    node_ip: str
    port: int
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """What a worker knows of itself and its group.

    Args:
        role: name of the group, e.g. ``"hybrid"``.
        rank: number of the worker in the group; contiguous on a node.
        world_size: number of workers in the group.
        ranks: by name, the layouts in which the worker has a part, and its rank in each.
        local_rank: number of the worker on this node; with GPUs, the index of its device.
        local_world_size: number of the group's workers on this node.
        node_ip: address of this node.
        master_address: address of rank 0's node, for the rendezvous of process groups.
        master_port: a port that was free there when the group was made.
        job_id: unique name of the group's life, for shared-memory names and temporary folders.
    """

    role: str
    rank: int
    world_size: int
    ranks: Mapping[str, int]
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
