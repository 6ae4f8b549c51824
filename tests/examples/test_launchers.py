"""Every launcher of examples/qwen2.5_math passes `cfpo check`, for each size, variant, loss and number of GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_recipe import ROW

from cfpo_hybrid.errors import ModelError
from trainer.check.memory import GIB, Device
from trainer.check.report import fits, report
from trainer.config import model as model_facts
from trainer.config.model import LoadedConfig
from trainer.rules import find_layout_problems, load_and_inspect, read_config

EXAMPLES = Path(__file__).parents[2] / "examples" / "qwen2.5_math"
GPU = Device(is_gpu=True, bytes=80 * GIB)
SIZES = ("1.5b", "3b", "7b")
LOSSES = ("clip", "dual_clip", "cfpo")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, revision: str | None = None) -> dict:
        raise ModelError(f"{path} could not be fetched")

    monkeypatch.setattr(model_facts, "load_hf_config", unreachable)


@pytest.fixture
def math(tmp_path: Path) -> list[str]:
    data = tmp_path / "math.jsonl"
    data.write_text((json.dumps(ROW) + "\n") * 128)
    return [f"data.train_files=[{data}]", f"data.val_files=[{data}]"]


def launch(script: str, *words: str, **environment: str) -> list[str]:
    """The words that a launcher would call ``cfpo`` with."""
    command = ["bash", str(EXAMPLES / script), *words]
    answer = subprocess.run(
        command, env={**os.environ, "CFPO": "echo", **environment}, capture_output=True, text=True, check=True
    )
    return answer.stdout.split()


def check(words: list[str], extra: list[str]) -> LoadedConfig:
    command, recipe, *overrides = words
    assert command == "check"
    return load_and_inspect(recipe, [*overrides, *extra], known_models=True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gpus", ["1", "4", "8"])
def test_one_machine(size: str, gpus: str, math: list[str]):
    for variant in ("base", "instruct"):
        for loss in LOSSES:
            words = launch(f"run_{size}.sh", loss, GPUS=gpus, VARIANT=variant, COMMAND="check")
            loaded = check(words, math)
            config = loaded.config
            assert config.trainer.world_size == int(gpus)
            assert config.policy_loss.name == loss
            assert config.model.path.endswith("-Instruct") == (variant == "instruct")
            # Seven billion fp32 masters, moments and gradients are 114 GiB: the launcher's comment says so.
            assert fits(loaded, GPU) == ((size, gpus) != ("7b", "1")), report(loaded, GPU, find_layout_problems)
    assert fits(loaded, Device(is_gpu=True, bytes=150 * GIB))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("size", SIZES)
def test_several_nodes(size: str, math: list[str]):
    for settings in ({}, {"NODES": "4", "TP": "2", "PP": "2", "ROLLOUT_TP": "4"}):
        loaded = check(launch("run_multi_node.sh", size, "cfpo", COMMAND="check", **settings), math)
        assert loaded.config.trainer.ray_address == "auto"
        assert loaded.config.train_layout.tp > 1
        assert fits(loaded, GPU), report(loaded, GPU, find_layout_problems)


@pytest.mark.usefixtures("offline")
def test_words_after_the_loss_override_the_recipe(math: list[str]):
    words = launch("run_1.5b.sh", "cfpo", "algorithm.iterations=8", "algorithm.batch_ratio=2", COMMAND="check")
    assert check(words, math).config.algorithm.updates_per_step == 16


@pytest.mark.parametrize("wrong", [{"GPUS": "3"}, {"VARIANT": "chat"}])
def test_a_launcher_says_what_it_knows(wrong: dict[str, str]):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        launch("run_7b.sh", "cfpo", **wrong)
    assert caught.value.returncode == 2
    assert next(iter(wrong)) in caught.value.stderr


@pytest.mark.parametrize(("size", "lr"), [("1.5b", 3e-6), ("3b", 3e-6), ("7b", 1e-6)])
def test_recipes_are_table_3_of_the_paper(size: str, lr: float):
    config = read_config(EXAMPLES / f"{size}.yaml").checked()
    assert config.actor.lr == lr
    assert config.data.train_batch_size == 128
    assert config.rollout.group_size == 3
    assert config.algorithm.kl_coef == 0
    assert (config.data.max_prompt_length, config.data.max_response_length) == (512, 3072)
    assert config.rollout.temperature == 0.9
    assert config.policy_loss.knobs == {"epsilon": 0.2}
    optimizer = config.actor.optimizer
    assert (optimizer.schedule, optimizer.warmup_ratio) == ("cosine", 0.1)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.adam_eps) == (0.9, 0.999, 1e-8)
    assert config.algorithm.loss_aggregation == "seq_mean_token_mean"


def test_system_prompts_are_appendix_b_word_for_word():
    opening = (
        "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. "
        "You FIRST think about the reasoning process step by step and then provide the user with the answer. "
        "Please enclose your final answer in the box: `\\boxed{Your Answer}`."
    )
    prompts = {size: read_config(EXAMPLES / f"{size}.yaml").checked().data.system_prompt for size in SIZES}
    assert prompts["1.5b"] == opening
    assert prompts["3b"] == opening + " Please stop generation immediately after outputting the box."
    assert prompts["7b"] == (
        "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. "
        "Please provide a step-by-step solution to the following problem."
    )


@pytest.mark.slow
def test_a_launcher_through_the_command_line(math: list[str]):
    environment = {**os.environ, "CFPO": f"{sys.executable} -m trainer.cli", "COMMAND": "check", "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(EXAMPLES / "run_7b.sh"), "cfpo", *math, "algorithm.batch_ratio=4"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert (
        "16 optimizer steps a rollout, 15 of them off-policy, largest lag 15, each sample used 4 times" in answer.stdout
    )
    assert "fits: " in answer.stdout
    assert "built-in table" in answer.stdout
