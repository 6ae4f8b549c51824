"""Several nodes and devices, simulated on one machine: workers packed per node, ranks contiguous on a node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from controller_workers import EchoWorker
from ray.cluster_utils import Cluster

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture(scope="module", autouse=True)
def two_nodes() -> Iterator[None]:
    node = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 128 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**{name: value for name, value in node.items() if name != "include_dashboard"})
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def test_workers_are_packed_per_node_and_see_their_nodes_devices():
    pool = ResourcePool(num_nodes=2, workers_per_node=2, cpus_per_worker=0.5, gpus_per_worker=1)
    layouts = {"train": ParallelLayout(dp=2, tp=2)}
    with RayWorkerGroup(EchoWorker, pool=pool, layouts=layouts, role="test", env=ENV) as group:
        nodes = [info.node_id for info in group.infos]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        contexts = group.run(EchoWorker.where)
        assert [context.local_rank for context in contexts] == [0, 1, 0, 1]
        assert {context.local_world_size for context in contexts} == {2}
        assert len({context.master_port for context in contexts}) == 1
        visible = group.run(EchoWorker.environment, "CUDA_VISIBLE_DEVICES")
        for node in (0, 2):  # both workers of a node see both devices; local_rank is the index of a worker's own
            own = [group.infos[node + local].gpu_ids[0] for local in (0, 1)]
            assert visible[node] == visible[node + 1] == ",".join(own)


def test_a_node_is_never_asked_for_more_than_it_has():
    with pytest.raises(ConfigError, match="0 of its 2 nodes could; the nodes have 2 CPU, 2 GPU; 2 CPU, 2 GPU"):
        RayWorkerGroup(
            EchoWorker,
            pool=ResourcePool(workers_per_node=4, cpus_per_worker=1),
            layouts={"train": ParallelLayout(dp=4)},
            role="test",
        )
