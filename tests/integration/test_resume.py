"""A run that is stopped and resumed ends like one that never stopped, bit for bit."""

import json
from pathlib import Path

import pytest
from integration_world import overrides, write_world
from safetensors.torch import load_file

from trainer.config import TrainerConfig
from trainer.config.load import load_config
from trainer.ray_cluster import ray_cluster
from trainer.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

UNTIMED = ("time/", "perf/", "reshard/seconds", "reshard/probe")


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    with ray_cluster(TrainerConfig(num_workers=4), "cpu"):
        yield


def lines(run_dir: Path, name: str) -> list[dict]:
    read = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(UNTIMED)} for line in read]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path):
    recipe = write_world(tmp_path)
    common = {"trainer__save_every": 1, "trainer__val_before_train": False, "actor__optimizer__schedule": "cosine"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(load_config(recipe, overrides(trainer__run_dir=whole, trainer__total_steps=2, **common)))
    # The first half is told the whole length, or its cosine would be another one; it is cut back to one step.
    train(load_config(recipe, overrides(trainer__run_dir=broken, trainer__total_steps=2, **common)))
    first = broken / "checkpoints" / "step_000001"
    train(
        load_config(recipe, overrides(trainer__run_dir=broken, trainer__total_steps=2, trainer__resume=first, **common))
    )
    assert lines(broken, "metrics.jsonl") == lines(whole, "metrics.jsonl")
    assert lines(broken, "updates.jsonl") == lines(whole, "updates.jsonl")
    expected = load_file(whole / "export" / "model.safetensors")
    found = load_file(broken / "export" / "model.safetensors")
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
