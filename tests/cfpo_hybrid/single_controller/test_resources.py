"""Resource pools: what is asked of a node, and requests that no cluster could meet."""

import pytest

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.single_controller import ResourcePool


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
