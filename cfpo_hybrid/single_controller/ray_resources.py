"""Resource pools on a Ray cluster: one bundle a node, so that a node's workers stay together."""

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.single_controller.resources import ResourcePool

_PATIENCE_SECONDS = 20.0
"""How long resources that the cluster has may be in use by others before a pool gives up."""


def reserve(pool: ResourcePool) -> PlacementGroup:
    """Books the pool: bundle i of the placement group holds the workers of the i-th node.

    Raises:
        ConfigError: the cluster is too small, or others keep what is needed.
    """
    pool.check([node["Resources"] for node in ray.nodes() if node["Alive"]])
    strategy = "STRICT_PACK" if pool.num_nodes == 1 else "STRICT_SPREAD"
    reservation = placement_group([pool.node_bundle] * pool.num_nodes, strategy=strategy)
    if reservation.wait(_PATIENCE_SECONDS):
        return reservation
    remove_placement_group(reservation)
    free = {kind: amount for kind, amount in ray.available_resources().items() if kind in ("CPU", "GPU")}
    raise ConfigError(
        f"the cluster could hold {pool.describe()}, but others use it: free are {free or 'no CPU or GPU'} of "
        f"{ {kind: amount for kind, amount in ray.cluster_resources().items() if kind in ('CPU', 'GPU')} }. "
        f"Stop the other jobs, or ask for less"
    )


def copies_that_fit(pool: ResourcePool) -> int:
    """How many such pools the cluster could hold side by side, were it idle."""
    return pool.copies_on([node["Resources"] for node in ray.nodes() if node["Alive"]])


def node_of(
    reservation: PlacementGroup | None, index: int
) -> PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy:
    """Where the workers of the pool's ``index``-th node go; without a reservation, to the driver's node."""
    if reservation is None:
        return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return PlacementGroupSchedulingStrategy(reservation, index)
