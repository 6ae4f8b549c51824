"""What is done with a finished run: resume it from the middle, evaluate it, open its export elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from integration_world import overrides, write_world
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.config import TrainerConfig
from trainer.config.load import load_config
from trainer.evaluate import evaluate
from trainer.evaluation_options import EvaluationOptions
from trainer.ray_cluster import ray_cluster
from trainer.train import train

pytestmark = [pytest.mark.integration, pytest.mark.slow]

UNTIMED = ("time/", "perf/", "reshard/seconds", "reshard/probe")
SETTINGS = {
    "trainer__total_steps": 2,
    "trainer__save_every": 1,
    "trainer__val_before_train": False,
    "actor__optimizer__schedule": "cosine",
    # A weight of the KL penalty that moves: a resumed run must go on with the one it had come to.
    "algorithm__kl_coef": 0.1,
    "algorithm__kl_target": 0.001,
    "algorithm__kl_horizon": 100,
    # Rollouts of older weights with noisy log-probs: a resumed run must have both again.
    "algorithm__weight_lag": 1,
    "algorithm__log_prob_noise": 0.05,
    "algorithm__rollout_correction__mode": "truncate",
    # Every transform of the sampling distribution there is.
    "rollout__temperature": 0.8,
    "rollout__top_p": 0.9,
    "rollout__top_k": 40,
}
RESPONSE_TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    with ray_cluster(TrainerConfig(num_workers=4), "cpu"):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and the run ``whole`` of two steps."""
    folder = tmp_path_factory.mktemp("life")
    recipe = write_world(folder)
    train(load_config(recipe, overrides(trainer__run_dir=folder / "whole", **SETTINGS)))
    return folder


def lines(run_dir: Path, name: str) -> list[dict]:
    read = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(UNTIMED)} for line in read]


def test_a_resumed_run_equals_an_unbroken_one(world: Path):
    whole, broken = world / "whole", world / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "export")
    first = broken / "checkpoints" / "step_000001"
    train(load_config(world / "recipe.yaml", overrides(trainer__run_dir=broken, trainer__resume=first, **SETTINGS)))

    assert [line["step"] for line in lines(broken, "metrics.jsonl")] == [1, 2]
    assert lines(broken, "metrics.jsonl") == lines(whole, "metrics.jsonl")
    assert lines(whole, "metrics.jsonl")[1]["actor/kl_coef"] != SETTINGS["algorithm__kl_coef"]
    updates = lines(whole, "updates.jsonl")
    assert lines(broken, "updates.jsonl") == updates
    assert [update["rollout/weight_lag"] for update in updates] == [0.0] * 4 + [1.0] * 4
    # Old log-probs are those of the weights that sampled, so what the engines disagree in is the noise: a hundred draws.
    for update in updates:
        assert update["mismatch/numeric_rms"] == pytest.approx(update["rollout/log_prob_noise"], rel=0.5)
        assert update["mismatch/transform_mean"] < -0.1  # log 0.9, and what top-k takes
    # One step behind, even the first update of a rollout has drifted.
    assert updates[0]["mismatch/drift_rms"] == 0.0
    assert updates[4]["mismatch/drift_rms"] > 0.0
    expected = load_file(whole / "export" / "model.safetensors")
    found = load_file(broken / "export" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_a_run_goes_on_under_another_layout(world: Path):
    """Saved by two data-parallel workers with the distributed optimizer, resumed by two tensor-parallel ones."""
    moved, first = world / "moved", world / "whole" / "checkpoints" / "step_000001"
    layout = overrides(actor__megatron__tensor_parallel_size=2, actor__megatron__distributed_optimizer=False)
    words = overrides(trainer__run_dir=moved, trainer__resume=first, **SETTINGS)
    train(load_config(world / "recipe.yaml", [*words, *layout]))
    found = lines(moved, "updates.jsonl")
    expected = [line for line in lines(world / "whole", "updates.jsonl") if line["step"] == found[0]["step"]]
    assert len(found) == len(expected) == 4
    for update, unbroken in zip(found, expected, strict=True):
        for key in ("actor/loss", "actor/grad_norm", "actor/kl_k3", "actor/lr"):
            assert update[key] == pytest.approx(unbroken[key], rel=1e-3, abs=1e-6), key


def greedy_answers(folder: Path, problems: list[str]) -> list[str]:
    """Those of plain transformers, one problem at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for problem in problems:
        chat = [{"role": "user", "content": problem}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**ids, max_new_tokens=RESPONSE_TOKENS, do_sample=False)
        answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def evaluate_run(world: Path, name: str, **options: object) -> tuple[dict[str, float], list[dict]]:
    output = world / name
    scores = evaluate(
        EvaluationOptions(
            model=str(world / "whole"),
            files=(str(world / "val.jsonl"),),
            output=str(output),
            max_prompt_length=16,
            max_response_length=RESPONSE_TOKENS,
            reward=f"{world / 'reward.py'}:vowels",
            **options,
        )
    )
    rows = [json.loads(line) for line in (output / "generations.jsonl").read_text().splitlines()]
    assert json.loads((output / "scores.json").read_text()) == scores
    return scores, rows


def test_evaluation_gives_the_answers_of_plain_transformers(world: Path):
    scores, rows = evaluate_run(world, "greedy", greedy=True)
    expected = greedy_answers(world / "whole" / "export", [row["problem"] for row in rows])
    assert [row["response"] for row in rows] == expected
    assert scores["problems"] == len(rows) == 4
    assert scores["accuracy"] == pytest.approx(sum(row["reward"] for row in rows) / 4)


def test_sampled_evaluation_reports_pass_at_k(world: Path):
    scores, rows = evaluate_run(world, "sampled", samples=4, temperature=1.0, top_p=0.95)
    assert {"pass@1", "pass@2", "pass@4"} <= scores.keys()
    assert len({row["response"] for row in rows}) > 4
