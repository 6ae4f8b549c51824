"""A Ray of the run's own: quiet on the terminal, closed to others, and gone at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = """
import logging, os
logging.basicConfig(level=logging.WARNING)
import ray
from trainer.config import TrainerConfig
from trainer.launch.ray_cluster import ray_cluster
with ray_cluster(TrainerConfig(num_workers=3), "cpu"):
    with ray_cluster(TrainerConfig(num_workers=1), "cpu"):
        pass
    assert ray.cluster_resources()["CPU"] >= 3
    assert os.environ["RAY_AUTH_MODE"] == "token"
assert not ray.is_initialized()
"""


FOLDERS = """
from cfpo_hybrid.plugins import search_callers_folder_last
search_callers_folder_last()
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.single_controller import ResourcePool
from cfpo_hybrid.single_controller.ray_group import RayWorkerGroup
from trainer.config import TrainerConfig
from trainer.launch.ray_cluster import ray_cluster
from workers.single_engine import GenerationWorker

pool = ResourcePool(num_nodes=1, workers_per_node=1, cpus_per_worker=1)
with ray_cluster(TrainerConfig(num_workers=1), "cpu"):
    layouts = {"rollout": ParallelLayout()}
    with RayWorkerGroup(GenerationWorker, args=(None,), pool=pool, layouts=layouts, role="generation"):
        pass
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_folder_named_workers_where_the_command_was_called_is_not_taken_for_ours(tmp_path: Path):
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise ImportError('not yours')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FOLDERS]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_asks_for_a_token_and_says_nothing():
    answer = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""
    assert "oken authentication" not in answer.stderr


NO_TOKEN = """
from cfpo_hybrid.errors import ConfigError
from trainer.config import TrainerConfig
from trainer.launch.ray_cluster import ray_cluster
try:
    with ray_cluster(TrainerConfig(num_workers=1, ray_address="127.0.0.1:1"), "cpu"):
        pass
except ConfigError as error:
    print(error)
"""


def test_a_cluster_with_a_token_and_a_driver_without_one(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-c", NO_TOKEN]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "trainer.ray_address='127.0.0.1:1': no Ray cluster lets this process in (Token" in answer.stdout
    assert "export RAY_AUTH_MODE=token" in answer.stdout
