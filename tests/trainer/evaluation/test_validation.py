"""Validation of sets: the figures of each set and source by hand, over-long problems, votes, rewards of their own."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from data_world import char_tokenizer, run_config, write_rows

from cfpo_hybrid.protocol import DataProto
from trainer.config import DataConfig
from trainer.data import load_validation
from trainer.evaluation.evaluate import scores_of
from trainer.evaluation.validation import Evaluation, validate
from trainer.run.validation_names import METRICS_OF_A_SET
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker
from workers.rollout.engine import SamplingSettings

NAN = float("nan")


class Workers:
    """Responds to problem "7:a,b" with the answers a and b, one a sample; right is the ground truth; "?" has no opinion."""

    def __init__(self, verdicts: bool = True, means: dict[str, list[float]] | None = None):
        self.verdicts, self.means = verdicts, means or {}

    def run(self, method: Any, batch: DataProto, sampling: Any = None) -> Any:
        rows = len(batch)
        if method is HybridWorker.generate:
            lengths = torch.tensor([len(self.answer(batch, row)) for row in range(rows)])
            return DataProto({"response_lengths": lengths, "truncated": torch.zeros(rows, dtype=torch.bool)})
        if method is RewardWorker.decode and "problem" not in batch:
            return ["the prompt"] * rows
        if method is RewardWorker.decode:
            return [rf"So \boxed{{{self.answer(batch, row)}}}" for row in range(rows)]
        assert method is RewardWorker.score
        answers = [self.answer(batch, row) for row in range(rows)]
        given = [float(answer == truth) for answer, truth in zip(answers, batch["ground_truth"], strict=True)]
        rewards = torch.tensor(
            [NAN if answer == "?" else reward for answer, reward in zip(answers, given, strict=True)]
        )
        columns = {"rewards": rewards} | ({"verdicts": rewards} if self.verdicts else {})
        meta = {"counts": {"reward/no_opinion": answers.count("?")}, "means": self.means}
        return DataProto(columns, meta={"replicas": [meta]})

    @staticmethod
    def answer(batch: DataProto, row: int) -> str:
        return batch["problem"][row].partition(":")[2].split(",")[int(batch["sample_ids"][row])]


def evaluated(data: DataConfig, *, samples: int = 1, **workers: Any) -> Evaluation:
    prompts = load_validation(run_config(data, val_samples=samples), char_tokenizer())
    assert prompts is not None
    group: Any = Workers(**workers)
    return validate(prompts, group, group, SamplingSettings(max_tokens=9))


def rows(*problems: str, source: str | None = None) -> list[dict[str, Any]]:
    """The answer to each of "7:7,8" is 7."""
    extra = {} if source is None else {"data_source": source}
    return [{"problem": problem, "answer": problem.partition(":")[0], **extra} for problem in problems]


@pytest.fixture
def two_sets(tmp_path) -> DataConfig:
    """Of easy 3 of 4 are right; of hard 1 of 4 and one problem that is too long; p + 5 characters a prompt."""
    easy = write_rows(tmp_path / "easy.jsonl", rows("1:1", "2:2", "3:3", "4:0"))
    hard = write_rows(tmp_path / "hard.jsonl", rows("1:1", "2:0", "3:0", "4:0", "5:5, a long problem"))
    return DataConfig(train_files=[], val_sets={"easy": [easy], "hard": [hard]}, max_prompt_length=12)


def test_every_set_has_figures_of_its_own_and_all_problems_have_the_overall_ones(two_sets):
    figures = evaluated(two_sets).metrics()
    assert figures["easy/accuracy"] == 0.75
    assert figures["hard/accuracy"] == 0.2  # the problem that is too long is one of five, and wrong
    assert figures["accuracy"] == pytest.approx(4 / 9)
    assert (figures["easy/overlong"], figures["hard/overlong"], figures["overlong"]) == (0, 1, 1)
    assert (figures["easy/reward"], figures["hard/reward"]) == (0.75, 0.25)  # of what was rewarded
    assert figures["easy/accuracy_stderr"] == pytest.approx(0.25)  # 0.5 / sqrt(4)
    assert figures["hard/accuracy_stderr"] == pytest.approx(0.2)
    assert not any("pass@" in name or "maj@" in name or "source" in name for name in figures)


def test_cut_problems_are_answered_and_counted(two_sets):
    figures = evaluated(replace(two_sets, overlong="cut")).metrics()
    assert (figures["hard/overlong"], figures["hard/accuracy"], figures["hard/reward"]) == (1, 0.4, 0.4)


def test_a_reward_that_is_no_verdict_leaves_overlong_problems_out_of_its_mean(two_sets):
    figures = evaluated(two_sets, verdicts=False).metrics()
    assert figures["reward"] == 0.5  # 4 of 8
    assert figures["reward_stderr"] == pytest.approx(0.5345 / 8**0.5, rel=1e-3)
    assert figures["overlong"] == 1
    assert not any("accuracy" in name or "@" in name for name in figures)


def test_several_samples_have_pass_at_k_and_a_vote(tmp_path):
    # 7 wins its vote, 2 wins none, 5 ties with 0: one problem and a half of three.
    file = write_rows(tmp_path / "val.jsonl", rows("7:7,7,0,7", "2:9,9,9,2", "5:5,0,5,0"))
    figures = evaluated(DataConfig(train_files=[], val_files=[file]), samples=4).metrics()
    assert figures["accuracy"] == figures["pass@1"] == 0.5
    assert figures["pass@4"] == 1.0
    assert figures["maj@4"] == 0.5
    assert figures["pass@2"] == pytest.approx((1 + 1 / 2 + 5 / 6) / 3)


def test_an_overlong_problem_passes_in_no_number_of_samples(two_sets, tmp_path):
    file = write_rows(tmp_path / "val.jsonl", rows("1:1,1", "2:2,2, a long problem"))
    figures = evaluated(DataConfig(train_files=[], val_files=[file], max_prompt_length=12), samples=2).metrics()
    assert figures["accuracy"] == figures["pass@2"] == figures["maj@2"] == 0.5


def test_sources_within_a_set_have_figures_under_clean_names(tmp_path):
    mixed = [
        *rows("1:1", "2:2", source="openai/gsm8k"),
        *rows("3:0", source="openai gsm8k"),
        *rows("4:4, a long problem", source="aime"),
        *rows("5:5"),
    ]
    file = write_rows(tmp_path / "val.jsonl", mixed)
    alone = write_rows(tmp_path / "alone.jsonl", rows("1:1", source="aime"))
    data = DataConfig(train_files=[], val_sets={"mixed": [file], "alone": [alone]}, max_prompt_length=12)
    figures = evaluated(data).metrics()
    found = {name: value for name, value in figures.items() if "source" in name and name.endswith("accuracy")}
    assert found == {
        "mixed/source/aime/accuracy": 0.0,
        "mixed/source/none/accuracy": 1.0,
        "mixed/source/openai_gsm8k/accuracy": 0.0,
        "mixed/source/openai_gsm8k_2/accuracy": 1.0,
    }
    assert figures["mixed/source/aime/overlong"] == 1
    assert "mixed/source/aime/reward" not in figures  # nothing was rewarded


def test_a_column_of_many_values_says_no_source(tmp_path, caplog):
    many = [row for number in range(40) for row in rows(f"{number}:0", source=f"row {number}")]
    data = DataConfig(train_files=[], val_files=[write_rows(tmp_path / "val.jsonl", many)])
    assert not any("source" in name for name in evaluated(data).metrics())
    assert "has 40 values in the column 'data_source' (data.source_key)" in caplog.text


def test_the_rewards_own_values_are_figures_too(two_sets):
    figures = evaluated(two_sets, means={"reward/tone": [1.5, 3]}).metrics()
    assert (figures["reward/tone"], figures["reward/no_opinion"]) == (0.5, 0)


def test_no_figure_of_all_problems_could_be_a_set_s(tmp_path):
    """A set's figures begin with its name, so no set may have the name that another figure begins with."""
    file = write_rows(tmp_path / "val.jsonl", [*rows("1:1,1", source="a"), *rows("2:2,0", source="b")])
    evaluation = evaluated(DataConfig(train_files=[], val_files=[file]), samples=2, means={"reward/tone": [1.0, 1]})
    beginnings = {name.partition("/")[0] for name in scores_of(evaluation)}
    assert {name for name in beginnings if "@" not in name} <= METRICS_OF_A_SET


def test_what_nobody_has_an_opinion_on_is_left_out_and_never_nan(tmp_path):
    file = write_rows(tmp_path / "val.jsonl", rows("1:?,?", "2:2,?", "3:0,3"))
    data = DataConfig(train_files=[], val_files=[file])
    figures = evaluated(data, samples=2).metrics()
    assert figures["accuracy"] == pytest.approx(2 / 3)  # of the three that were judged
    assert figures["pass@1"] == pytest.approx(1 / 3)  # what was not judged is not right
    assert figures["reward/no_opinion"] == 3
    nothing = evaluated(DataConfig(train_files=[], val_files=[write_rows(tmp_path / "n.jsonl", rows("1:?", "2:?"))]))
    assert nothing.metrics().keys() == {"response_length", "truncated_share", "overlong", "reward/no_opinion"}
    for found in (figures, nothing.metrics()):
        assert json.dumps(found, allow_nan=False)


def test_scores_of_an_evaluation_are_the_figures_of_a_validation(two_sets):
    evaluation = evaluated(two_sets)
    scores = scores_of(evaluation)
    figures = evaluation.metrics()
    assert {name: scores[name] for name in figures} == figures
    assert (scores["problems"], scores["hard/problems"], scores["samples"]) == (9, 5, 1)
    assert scores["pass@1"] == scores["accuracy"]
    assert [row["set"] for row in evaluation.rows()] == ["easy"] * 4 + ["hard"] * 4


def test_responses_of_the_set_without_a_name_have_no_set(tmp_path):
    data = DataConfig(train_files=[], val_files=[write_rows(tmp_path / "val.jsonl", rows("1:1"))])
    (row,) = evaluated(data).rows()
    assert "set" not in row
    assert row["reward"] == 1.0
