import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from workers.config import ModelConfig, RewardConfig
from workers.reward.reward_worker import RewardWorker

ROOT = Path(__file__).parents[3]
CUSTOM = """
import os

def score(problem, response, ground_truth, extra):
    return float(os.getpid())
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


def batch_of(num_rows: int) -> DataProto:
    columns = {
        "responses": torch.arange(num_rows)[:, None] % 50 + 5,
        "response_lengths": torch.ones(num_rows, dtype=torch.int64),
        "problem": ["p"] * num_rows,
        "ground_truth": ["1"] * num_rows,
    }
    return DataProto(columns)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_graders_live_and_end_with_ray_workers(cluster: None, model_with_tokenizer: ModelConfig, tmp_path: Path):
    path = tmp_path / "custom.py"
    path.write_text(CUSTOM)
    group = RayWorkerGroup(
        RewardWorker,
        args=(model_with_tokenizer, RewardConfig(name=f"{path}:score", num_processes=1)),
        pool=ResourcePool(workers_per_node=2, cpus_per_worker=0.5),
        layouts={"reward": ParallelLayout(dp=2)},
        role="reward",
    )
    with group:
        pids = {int(pid) for pid in group.run(RewardWorker.score, batch_of(8))["rewards"].tolist()}
        assert len(pids) == 2
        os.kill(min(pids), signal.SIGKILL)
        scored = group.run(RewardWorker.score, batch_of(8))
        pids = {int(pid) for pid in scored["rewards"].tolist()}
        assert len(pids) == 2
        assert 0 not in pids
        replicas = scored.meta["replicas"]
        assert [meta["counts"]["reward/failures"] for meta in replicas] == [0, 0]
    end = time.monotonic() + 10.0
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
