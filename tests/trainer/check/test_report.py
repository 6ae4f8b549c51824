from pathlib import Path

from tiny_recipe import write_recipe

from trainer.check.memory import GIB, Device
from trainer.check.report import fits, report
from trainer.config.load import load_and_inspect

GPU = Device(is_gpu=True, bytes=80 * GIB)


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


def test_a_gpu_that_is_large_enough_and_one_that_is_not(tmp_path: Path):
    loaded = load_and_inspect(write_recipe(tmp_path), ["trainer.device=cuda"])
    assert fits(loaded, GPU)
    assert "fits: " in report(loaded, GPU)
    small = Device(is_gpu=True, bytes=2 * GIB)  # less than what CUDA itself is assumed to take
    assert not fits(loaded, small)
    text = report(loaded, small)
    assert "does not fit" in text
    assert "use more workers or a larger device" in text
