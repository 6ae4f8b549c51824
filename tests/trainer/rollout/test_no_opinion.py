"""A step whose reward function has no opinion on some responses, through real grader processes: nothing is NaN but they."""

import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_world import char_tokenizer

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.protocol import DataProto
from cfpo_hybrid.single_controller import InProcessWorkerGroup
from trainer.config import Config, DataConfig, TrainerConfig
from trainer.evaluation.validation import generation_rows
from trainer.run.files import json_line
from trainer.run.metrics import StageTimer, step_metrics
from trainer.run.reward_failures import RewardFailures
from trainer.session import Session
from trainer.step import train_step
from workers.config import AlgorithmConfig, ModelConfig, RewardConfig, RolloutConfig
from workers.hybrid_worker import HybridWorker
from workers.messages import SyncReport
from workers.reward.reward_worker import RewardWorker

NAN, WIDTH, GROUP = float("nan"), 4, 3
FUNCTION = """
def score(problem, response, ground_truth, extra):
    return extra["reward"]
"""
KNOBS = {"pass_at_k": {"k": 2}}


@pytest.fixture(scope="module")
def graders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessWorkerGroup]:
    """One reward worker with a real grader process: the reward of a row is in its columns."""
    tmp_path = tmp_path_factory.mktemp("graders")
    char_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.py").write_text(FUNCTION)
    reward = RewardConfig(name=f"{tmp_path}/mine.py:score", num_processes=1, timeout_seconds=30.0, lowest=-5.0)
    layouts = {"reward": ParallelLayout()}
    model = ModelConfig(path=str(tmp_path / "model"))
    with InProcessWorkerGroup(RewardWorker, args=(model, reward), layouts=layouts, role="reward") as group:
        yield group


class Prompts:
    """A group of three rows for each list of three rewards."""

    def __init__(self, rewards: list[list[float | None]]) -> None:
        self.rewards = rewards

    def draw(self, position: int, count: int, *, step: int, first_group: int = 0) -> DataProto:
        flat = [{"reward": reward} for group in self.rewards for reward in group]
        rows = len(flat)
        return DataProto(
            {
                "prompts": torch.ones(rows, 2, dtype=torch.int64),
                "prompt_lengths": torch.full((rows,), 2),
                "group_ids": torch.arange(count).repeat_interleave(GROUP),
                "sample_ids": torch.arange(GROUP).repeat(count),
                "problem": ["p"] * rows,
                "ground_truth": ["t"] * rows,
                "extra": flat,
            }
        )


class Actors:
    """Respond, and keep what they are told to train on."""

    def run(self, method: Any, *arguments: Any) -> Any:
        if method is HybridWorker.generate:
            rows = len(arguments[0])
            return DataProto(
                {
                    "responses": torch.ones(rows, WIDTH, dtype=torch.int64),
                    "response_lengths": torch.full((rows,), WIDTH),
                    "response_mask": torch.ones(rows, WIDTH, dtype=torch.bool),
                    "truncated": torch.zeros(rows, dtype=torch.bool),
                }
            )
        if method is HybridWorker.update_policy:
            self.batch = arguments[0]
            return [SimpleNamespace(updates=[], trips=[])]
        if method is HybridWorker.sync_weights:
            return SyncReport(
                policy_version=1, seconds=0.0, parts={}, bytes_total=0, bytes_moved=0, probe_difference=None
            )
        return None


def stepped(graders: InProcessWorkerGroup, rewards: list[list[float | None]], tell: Any = print, **algorithm: Any):
    """The batch that was trained on, and the metrics of the step."""
    config = Config(
        data=DataConfig(train_files=["x"], train_batch_size=len(rewards), max_response_length=WIDTH),
        rollout=RolloutConfig(group_size=GROUP),
        algorithm=AlgorithmConfig(**algorithm),
        trainer=TrainerConfig(num_workers=1),
    )
    actors: Any = Actors()
    parts: Any = {"actors": actors, "graders": graders, "prompts": Prompts(rewards)}
    session = Session(
        config=config,
        timer=StageTimer(),
        kl=KlController(coef=0.0),
        reward_failures=RewardFailures(None, tell),
        **parts,
    )
    report = train_step(session, 0)
    return actors.batch, step_metrics(report, session.take_reshards(), session.timer.collect())


@pytest.mark.parametrize("name", sorted(entry.name for entry in ADVANTAGES.entries()))
def test_rows_without_an_opinion_change_nothing_for_the_others(graders: InProcessWorkerGroup, name: str):
    how = {"advantage": name, "advantage_knobs": KNOBS.get(name, {})}
    batch, metrics = stepped(graders, [[1.0, None, 0.0], [None, None, None], [0.0, 1.0, 1.0]], **how)
    unknown = torch.tensor([False, True, False, True, True, True, False, False, False])
    assert batch["rewards"].isnan().equal(unknown)
    assert batch["advantages"].isfinite().all()
    assert not batch["advantages"][unknown].any()
    assert not batch["response_mask"][unknown].any()
    assert batch["response_mask"][~unknown].all()
    assert metrics["reward/no_opinion"] == 4
    assert metrics["reward/mean"] == pytest.approx(3 / 5)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    alone, _ = stepped(graders, [[0.0, 1.0, 1.0]], **how)
    if name not in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):  # whose scale is that of the whole batch
        assert batch["advantages"][6:].equal(alone["advantages"])


@pytest.mark.parametrize("name", sorted(entry.name for entry in ADVANTAGES.entries()))
def test_a_step_without_any_opinion_has_no_reward_and_no_nan(graders: InProcessWorkerGroup, name: str):
    batch, metrics = stepped(graders, [[None] * GROUP] * 2, advantage=name, advantage_knobs=KNOBS.get(name, {}))
    assert not batch["advantages"].any()
    assert not batch["response_mask"].any()
    assert "reward/mean" not in metrics
    assert metrics["reward/no_opinion"] == 6
    assert json.dumps(metrics, allow_nan=False)


def test_a_row_without_an_opinion_is_saved_with_null(graders: InProcessWorkerGroup):
    batch, _ = stepped(graders, [[1.0, None, 0.0]])
    rows = [json.loads(json_line(row)) for row in generation_rows(batch, ["a", "b", "c"], ["p"] * 3)]
    assert [row["reward"] for row in rows] == [1.0, None, 0.0]


def test_the_first_reward_beyond_its_bound_is_named_once(graders: InProcessWorkerGroup):
    told: list[str] = []
    batch, metrics = stepped(graders, [[1.0, -9.0, -7.0]], told.append)
    assert batch["rewards"].tolist() == [1.0, -5.0, -5.0]
    assert metrics["reward/clipped"] == 2
    (line,) = told
    assert line.startswith("2 of 3 rewards lay beyond their bounds")
    assert "mine.py:score: -9.0 is beyond reward.lowest=-5.0" in line
