from pathlib import Path

import pytest
from data_world import write_rows
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer.check import report as module
from trainer.check.fitting import device_of
from trainer.check.memory import GIB, Device
from trainer.check.report import fits
from trainer.config.model import LoadedConfig
from trainer.rules import find_layout_problems, load_and_inspect

GPU = Device(is_gpu=True, bytes=80 * GIB)


def report(loaded: LoadedConfig, device: Device) -> str:
    return module.report(loaded, device, find_layout_problems)


def test_the_run_in_numbers(tmp_path: Path):
    words = ["trainer.num_workers=4", "actor.megatron.tensor_parallel_size=2", "actor.optimizer.warmup_ratio=0.1"]
    text = report(load_and_inspect(write_recipe(tmp_path), words), Device(is_gpu=False, bytes=0))
    assert "4 on 1 node (cpu): Megatron dp 2 x pp 1 x tp 2; vLLM 4 replicas of tp 1" in text
    assert "16 prompts x 4 responses = 64 responses of at most 32 + 64 = 96 tokens; about 16 for each vLLM" in text
    assert "4 of 4 prompts = 16 responses; about 8 for each Megatron replica" in text
    assert "8 optimizer steps a rollout, 7 of them off-policy, largest lag 7, each sample used 2 times" in text
    assert "5 rollout steps, 40 optimizer steps, 80 prompts" in text
    assert "0.001, constant, 4 optimizer steps of warm-up" in text
    assert "estimated per worker process" in text


def test_which_columns_each_file_is_read_by(tmp_path: Path):
    rows = [{"question": "1+1?", "answer": "#### 2"}]
    gsm8k = write_rows(tmp_path / "gsm8k.jsonl", rows)
    loaded = load_and_inspect(write_recipe(tmp_path), [f"data.val_files={gsm8k}"])
    lines = [line for line in report(loaded, GPU).splitlines() if line.startswith("data ")]
    assert [line.split(": ")[1] for line in lines] == [
        "question from 'problem', answer from 'solution'",
        "question from 'question', answer from 'answer'",
    ]


def test_a_gpu_that_is_large_enough_and_one_that_is_not(tmp_path: Path):
    loaded = load_and_inspect(write_recipe(tmp_path), ["trainer.device=cuda"])
    assert fits(loaded, GPU)
    assert "fits: " in report(loaded, GPU)
    small = Device(is_gpu=True, bytes=2 * GIB)  # less than what CUDA itself is assumed to take
    assert not fits(loaded, small)
    text = report(loaded, small)
    assert "does not fit" in text
    assert "use more workers or a larger device" in text


def test_memory_of_the_host_and_of_a_cache_that_is_too_small(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    lagging = load_and_inspect(recipe, ["trainer.device=cuda", "algorithm.weight_lag=2"])
    assert "host memory" in report(lagging, GPU)
    assert "older weights" in report(lagging, GPU)
    assert "host memory" not in report(load_and_inspect(recipe, ["trainer.device=cuda"]), GPU)
    tight = load_and_inspect(recipe, ["trainer.device=cuda", "rollout.gpu_memory_utilization=1.0e-7"])
    assert not fits(tight, GPU)
    assert "does not fit: one sequence of 96 tokens" in report(tight, GPU)
    assert "raise rollout.gpu_memory_utilization" in report(tight, GPU)


def test_the_device_of_an_estimate(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    auto = load_and_inspect(recipe, ["trainer.device=auto"]).config
    assert device_of(auto, 40.0) == Device(is_gpu=True, bytes=40 * GIB)
    for gib in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="--gpu-memory"):
            device_of(auto, gib)
    with pytest.raises(ConfigError, match=r"trainer\.device=cpu uses no GPU"):
        device_of(load_and_inspect(recipe, []).config, 80.0)
