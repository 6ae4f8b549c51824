"""Resource pools: what is asked of a node, and requests that no cluster could meet."""

import pytest

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool, ray_group
from cfpo_hybrid.single_controller.ray_group import Patience, RayWorkerGroup


def test_a_bundle_holds_all_workers_of_a_node():
    pool = ResourcePool(num_nodes=2, workers_per_node=4, cpus_per_worker=0.5, gpus_per_worker=1)
    assert pool.world_size == 8 and pool.node_bundle == {"CPU": 2.0, "GPU": 4.0}


def test_nodes_are_counted_one_by_one_not_summed():
    pool = ResourcePool(num_nodes=2, workers_per_node=4)
    pool.check([{"CPU": 4.0}, {"CPU": 1.0}, {"CPU": 8.0}])
    with pytest.raises(
        ConfigError, match=r"2 nodes x 4 workers \(each node: 4 CPU\): 1 of its 2 nodes could; .* 16 CPU; 3 CPU"
    ):
        pool.check([{"CPU": 16.0, "memory": 1e9}, {"CPU": 3.0}])
    with pytest.raises(ConfigError, match="each node: 1 CPU, 1 GPU"):
        ResourcePool(gpus_per_worker=1).check([{"CPU": 64.0}])


def test_what_is_missing_is_named_beside_what_is_there():
    pool = ResourcePool(num_nodes=3, workers_per_node=8, gpus_per_worker=1)
    nodes = [{"CPU": 8.0, "GPU": 8.0}, {"CPU": 16.0}]
    assert pool.missing(nodes) == "2 more nodes of 8 CPU, 8 GPU or above; there are 2: 8 CPU, 8 GPU; 16 CPU"
    assert pool.missing([]) == "3 more nodes of 8 CPU, 8 GPU or above; there are none"
    assert pool.missing([nodes[0]] * 2).startswith("1 more node of")
    assert pool.missing([nodes[0]] * 3) == ""


class Joining:
    """A cluster to which one more node joins whenever it is looked at, as far as there are any."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.looks = nodes, 0

    def __call__(self) -> list[dict[str, float]]:
        self.looks += 1
        return [{"CPU": 1.0}] * min(self.looks, self.nodes)


def reserve_on(nodes: Joining, monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """What is told until two nodes are there and are booked, which this test has not got."""
    told: list[str] = []
    monkeypatch.setattr(ray_group, "_nodes", nodes)
    monkeypatch.setattr(ray_group, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(ray_group, "placement_group", lambda *_, **__: told.append("booked"))
    with pytest.raises((ConfigError, AttributeError)) as caught:
        RayWorkerGroup(
            object,
            pool=ResourcePool(num_nodes=2),
            layouts={"train": ParallelLayout(dp=2)},
            role="test",
            patience=Patience(nodes_seconds=seconds, tell=told.append),
        )
    return [*told, str(caught.value)]


def test_nodes_that_have_yet_to_join_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    waits, booked, _ = reserve_on(Joining(2), monkeypatch, seconds=60.0)
    assert waits == "1 more node of 1 CPU or above; there are 1: 1 CPU; waited 0 of 60 s"
    assert booked == "booked"


def test_the_wait_for_nodes_ends_with_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    nodes = Joining(1)
    waits, error = reserve_on(nodes, monkeypatch, seconds=0.05)
    assert waits.startswith("1 more node of 1 CPU")  # once, though it was looked for several times
    assert nodes.looks > 2
    assert "cannot hold 2 nodes x 1 worker (each node: 1 CPU): 1 of its 1 nodes could" in error


def test_a_cluster_of_its_own_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    (error,) = reserve_on(Joining(1), monkeypatch, seconds=0.0)
    assert "cannot hold" in error


def test_numbers_out_of_range_are_all_told_at_once():
    with pytest.raises(ConfigError) as caught:
        ResourcePool(num_nodes=0, cpus_per_worker=-1, gpus_per_worker=2)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="driver's node only"):
        ResourcePool(num_nodes=2, cpus_per_worker=0)


def test_copies_side_by_side_are_counted_node_by_node():
    pool = ResourcePool(workers_per_node=2, gpus_per_worker=1)  # 2 CPUs and 2 GPUs of one node
    # 5 GPUs hold two pairs, 3 CPUs one; the second node has GPUs for one pair and the third has none.
    nodes = [{"CPU": 16, "GPU": 5}, {"CPU": 3, "GPU": 8}, {"CPU": 64}]
    assert pool.copies_on(nodes) == 2 + 1
    across = ResourcePool(num_nodes=2, workers_per_node=2, gpus_per_worker=1)
    assert across.copies_on(nodes) == 1
