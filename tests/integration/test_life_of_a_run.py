"""What is done with a finished run: resume it from the middle, evaluate it, open its export elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from integration_world import overrides, write_fatal_loss, write_world
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cfpo_hybrid.protocol import load
from trainer.cli import main
from trainer.config import TrainerConfig
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.options import load_evaluation
from trainer.launch.ray_cluster import ray_cluster
from trainer.rules import load_config
from trainer.run.checkpoint import load_state
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
    # Prompts that teach nothing are replaced, so the place in the data is no multiple of the batch.
    "rollout__generation_rounds": 3,
    "trainer__save_rollouts_every": 2,
    "watch__kl": 1.5,  # the first rollout goes beyond it in its second pass
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


def dotted(settings: dict) -> dict:
    """The same under the keys of a recipe."""
    return {key.replace("__", "."): value for key, value in settings.items()}


def lines(run_dir: Path, name: str) -> list[dict]:
    read = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(UNTIMED)} for line in read]


def same_run(found: Path, expected: Path) -> bool:
    """Whether two runs have the same logs but for times, and the same final weights bit for bit."""
    logs = all(lines(found, name) == lines(expected, name) for name in ("metrics.jsonl", "updates.jsonl"))
    weights = [load_file(run / "export" / "model.safetensors") for run in (found, expected)]
    names = weights[0].keys() | weights[1].keys()
    return logs and all(weights[0][name].equal(weights[1][name]) for name in names)


def test_a_run_in_live_engines_equals_a_fresh_one_begun_or_resumed(world: Path, capsys: pytest.CaptureFixture[str]):
    """A study of four runs on the same engines: one with other settings and another loss, then ``whole`` twice, first
    resumed from its first checkpoint and then from the start, and at last one with a worker that raises."""
    whole, output = world / "whole", world / "study"
    fatal, note = write_fatal_loss(world, "raise ArithmeticError('the loss broke')")
    study = {
        "recipe": str(world / "recipe.yaml"),
        "output": str(output),
        "settings": dotted(SETTINGS),
        # A name that no result depends on; the second is that of ``whole``.
        "axes": {"trainer.project": ["other", "cfpo_hybrid", "fresh", "failing"]},
        "cells": [
            {
                "when": {"trainer.project": "other"},
                "set": {
                    "policy_loss.name": "clip",
                    "actor.lr": 0.01,
                    "algorithm.iterations": 3,  # the longest run is the first
                    "rollout.group_size": 2,
                },
            },
            {"when": {"trainer.project": "failing"}, "set": dotted(fatal)},
        ],
    }
    (world / "study.yaml").write_text(yaml.safe_dump(study))
    other, resumed, fresh = (output / "runs" / f"{name}-seed1" for name in ("other", "cfpo_hybrid", "fresh"))
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "export")
    shutil.rmtree(resumed / "checkpoints" / "step_000002")
    assert main(["study", str(world / "study.yaml")]) == 1
    record = output / "runs" / "failing-seed1" / "failed.json"
    assert record.stat().st_mtime - float(note.read_text()) < 30
    error = json.loads(record.read_text())["error"]
    assert "hybrid[rank 1] failed in update_policy" in error.splitlines()[0] and "the loss broke" in error

    assert [line["step"] for line in lines(fresh, "metrics.jsonl")] == [0, 1, 2]
    assert same_run(fresh, whole)
    assert same_run(resumed, whole)
    assert not same_run(other, whole)
    assert lines(whole, "metrics.jsonl")[2]["actor/kl_coef"] != SETTINGS["algorithm__kl_coef"]
    outcomes = [json.loads((run / "done.json").read_text()) for run in (other, resumed, fresh)]
    assert [outcome["reused_engines"] for outcome in outcomes] == [False, True, True]
    assert outcomes[2]["start_seconds"] < outcomes[0]["start_seconds"] / 2

    capsys.readouterr()
    assert main(["study", str(world / "study.yaml"), "--check"]) == 0
    assert "4 runs, 3 of them done" in capsys.readouterr().out


def test_what_a_run_drew_stopped_and_saved(world: Path):
    whole = world / "whole"
    _, *steps = lines(whole, "metrics.jsonl")  # behind the state before training
    drawn = [step["sampling/prompts_drawn"] for step in steps]
    assert drawn[0] > 4  # a prompt taught nothing
    assert steps[0]["reward/groups_without_signal"] == 0 < steps[0]["sampling/groups_without_signal"]
    assert [load_state(whole / "checkpoints" / f"step_00000{step}").prompts_consumed for step in (1, 2)] == [
        drawn[0],
        sum(drawn),
    ]
    updates = [update for update in lines(whole, "updates.jsonl") if update["step"] == 1]
    assert steps[0]["watch/updates_left_out"] == 4 - len(updates) > 0
    assert [update["actor/kl_k3"] > SETTINGS["watch__kl"] for update in updates] == [False] * (len(updates) - 1) + [
        True
    ]
    offending, saved = load(whole / "offending" / "step_000001.batch"), load(whole / "rollouts" / "step_000002.batch")
    assert offending.meta["step"] == 1 and saved.column_names == offending.column_names
    assert len(saved) == 16


def test_the_pressure_that_a_run_was_put_under(world: Path):
    updates = lines(world / "whole", "updates.jsonl")
    assert [update["rollout/weight_lag"] for update in updates] == [update["step"] - 1 for update in updates]
    # Old log-probs are those of the weights that sampled, so what the engines disagree in is the noise: a hundred draws.
    for update in updates:
        assert update["mismatch/numeric_rms"] == pytest.approx(update["rollout/log_prob_noise"], rel=0.5)
        assert update["mismatch/transform_mean"] < -0.1  # log 0.9, and what top-k takes
    # One step behind, even the first update of a rollout has drifted.
    first = [update for update in updates if (update["iteration"], update["mini_batch"]) == (0, 0)]
    assert [update["mismatch/drift_rms"] > 0.0 for update in first] == [False, True]


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


def evaluate_run(world: Path, name: str, **settings: object) -> tuple[dict[str, float], list[dict]]:
    """With the run's own problems, columns, lengths and reward; a response is right when its reward is 1."""
    output = world / name
    said = dotted({"reward__pass_threshold": 1.0, **settings})
    scores = evaluate(load_evaluation(str(world / "whole"), settings=said), str(output))
    rows = [json.loads(line) for line in (output / "generations.jsonl").read_text().splitlines()]
    assert json.loads((output / "scores.json").read_text()) == scores
    return scores, rows


def test_evaluation_gives_the_answers_of_plain_transformers(world: Path):
    scores, rows = evaluate_run(world, "greedy")
    expected = greedy_answers(world / "whole" / "export", [row["problem"] for row in rows])
    assert [row["response"] for row in rows] == expected
    assert scores["problems"] == len(rows) == 4
    assert scores["accuracy"] == pytest.approx(sum(row["reward"] for row in rows) / 4)
    assert scores["reward"] == lines(world / "whole", "metrics.jsonl")[-1]["val/reward"]  # as the run's last validation


def test_sampled_evaluation_reports_pass_at_k(world: Path):
    sampling = {"trainer__val_samples": 4, "trainer__val_temperature": 1.0, "trainer__val_top_p": 0.95}
    scores, rows = evaluate_run(world, "sampled", **sampling)
    assert {"pass@1", "pass@2", "pass@4"} <= scores.keys()
    assert len({row["response"] for row in rows}) > 4
