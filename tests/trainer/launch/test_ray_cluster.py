"""A Ray of the run's own: quiet on the terminal, closed to others, and gone at the end."""

import subprocess
import sys

import pytest

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


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_asks_for_a_token_and_says_nothing():
    answer = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == ""
    assert "oken authentication" not in answer.stderr
