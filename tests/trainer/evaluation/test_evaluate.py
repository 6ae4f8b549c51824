"""What an evaluation finds out before it starts anything, where it writes, and pass@k against counting every draw."""

from itertools import combinations
from pathlib import Path

import pytest
import ray
import torch
from data_world import char_tokenizer
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError, RewardError
from cfpo_hybrid.protocol import DataProto
from trainer.evaluation.evaluate import default_folder, evaluate, pass_at_k, powers_up_to, scores_of
from trainer.evaluation.options import EvaluationOptions
from trainer.evaluation.validation import Evaluation


@pytest.fixture
def world(tmp_path: Path) -> dict:
    """A model of 4 heads and 128 positions without weights, and a file of problems."""
    write_recipe(tmp_path)
    char_tokenizer().save_pretrained(tmp_path / "model")
    return {"model": str(tmp_path / "model"), "files": (str(tmp_path / "train.jsonl"),)}


@pytest.fixture(autouse=True)
def starts_nothing():
    yield
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_response_length": 3072}, "exceed the 128 positions"),
        ({"num_workers": 3, "tensor_parallel_size": 3}, r"--tensor-parallel-size 3: .*4 attention heads"),
    ],
)
def test_what_the_model_cannot_do_is_refused(wrong: dict, message: str, world: dict):
    with pytest.raises(ConfigError, match=message):
        evaluate(EvaluationOptions(**world, **wrong))


def test_a_reward_that_is_not_there_is_found_before_the_work(world: dict):
    with pytest.raises(RewardError, match="there is no file"):
        evaluate(EvaluationOptions(**world, reward="nowhere.py:score"))


def test_a_folder_that_cannot_be_made_is_found_before_the_work(world: dict, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .* cannot be made"):
        evaluate(EvaluationOptions(**world, output=str(tmp_path / "file")))


def test_every_model_has_a_folder_of_its_own():
    assert default_folder("Qwen/Qwen2.5-1.5B") == Path("outputs/eval/Qwen-Qwen2.5-1.5B")
    assert default_folder("outputs/a/export") == Path("outputs/eval/outputs-a-export")
    assert default_folder("outputs/a/export") != default_folder("outputs/b/export")
    assert default_folder(".") == Path("outputs/eval/model")


def brute_force(row: list[bool], k: int) -> float:
    draws = list(combinations(row, k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_equals_counting_every_draw(k: int):
    rows = [[True, False, False, False, False], [False] * 5, [True] * 5, [True, True, False, True, False]]
    expected = sum(brute_force(row, k) for row in rows) / len(rows)
    assert pass_at_k(torch.tensor(rows), k) == pytest.approx(expected)


def test_pass_at_one_is_the_share_of_right_responses():
    # 3 of 8 responses are right
    assert pass_at_k(torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool(), 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers(samples: int, expected: list[int]):
    assert powers_up_to(samples) == expected


def scored(**columns: list[float]) -> Evaluation:
    lengths = torch.tensor([3, 4, 5, 4])
    fixed = {"response_lengths": lengths, "truncated": torch.zeros(4, dtype=torch.bool)}
    batch = DataProto({**fixed, **{name: torch.tensor(column) for name, column in columns.items()}})
    meta = [{"counts": {"reward/no_opinion": 1}, "means": {"reward/tone": [1.5, 3]}}]
    return Evaluation([batch], ["a", "b", "c", "d"], 2, meta)


def test_a_reward_that_is_no_verdict_has_neither_accuracy_nor_pass_at_k():
    evaluation = scored(rewards=[-2.0, -3.0, float("nan"), -1.0])
    assert scores_of(evaluation) == {
        "reward": -2.0,
        "problems": 2.0,
        "samples": 2.0,
        "response_length": 4.0,
        "truncated_share": 0.0,
        "reward/no_opinion": 1.0,
        "reward/tone": 0.5,
    }
    assert "val/accuracy" not in evaluation.metrics()
    assert evaluation.metrics()["val/reward"] == -2.0


def test_verdicts_are_what_accuracy_and_pass_at_k_count():
    # Of the three that were judged two are right; in each of the two problems one is.
    nan = float("nan")
    evaluation = scored(rewards=[7.0, nan, 6.0, 1.0], verdicts=[1.0, nan, 1.0, 0.0])
    scores = scores_of(evaluation)
    assert scores["accuracy"] == evaluation.metrics()["val/accuracy"] == pytest.approx(2 / 3)
    assert (scores["pass@1"], scores["pass@2"]) == (0.5, 1.0)
    assert scores["reward"] == pytest.approx(14 / 3)
