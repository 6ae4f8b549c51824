"""Steps 1 to 3 with workers that only count: rounds of generation, the batch they leave, ReMax's greedy responses; and
the deal of its groups into mini-batches.
"""

from types import SimpleNamespace

import pytest
import torch

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.errors import RewardError
from cfpo_hybrid.protocol import DataProto
from trainer.config import Config, DataConfig, TrainerConfig
from trainer.rollout.rollout import assign_mini_batches, chosen_rows, greedy_rewards, prompts_to_draw, sample_rollout
from trainer.run.metrics import StageTimer
from trainer.run.reward_failures import RewardFailures
from trainer.session import Session
from workers.config import AlgorithmConfig, RolloutConfig
from workers.hybrid_worker import HybridWorker
from workers.reward.reward_worker import RewardWorker

WIDTH = 10


class FakePrompts:
    """Prompt number n is the text of n; two responses each."""

    def __init__(self) -> None:
        self.draws: list[tuple[int, int, int, int]] = []

    def draw(self, position: int, count: int, *, step: int, first_group: int = 0) -> DataProto:
        self.draws.append((position, count, step, first_group))
        numbers = torch.arange(count).repeat_interleave(2)
        return DataProto(
            {
                "prompts": position + numbers.unsqueeze(1),
                "prompt_lengths": torch.ones(2 * count, dtype=torch.int64),
                "group_ids": first_group + numbers,
                "sample_ids": torch.arange(2).repeat(count),
                "extra": [{"level": "Level 4"}] * (2 * count),
            }
        )


class FakeWorkers:
    """Generates and scores: ``teaches`` says which prompts' two responses earn 1 and 0 rather than twice the same."""

    def __init__(self, teaches, silent=lambda number: False) -> None:
        self.teaches, self.silent, self.calls = teaches, silent, []
        self.failures: dict[str, list] = {}

    def run(self, method, batch, sampling=None):
        self.calls.append((method, len(batch), sampling))
        if method is HybridWorker.generate:
            rows = len(batch)
            lengths = torch.full((rows,), 9 if sampling.greedy else 4)
            return DataProto(
                {
                    "responses": torch.zeros(rows, WIDTH, dtype=torch.int64),
                    "response_lengths": lengths,
                    "response_mask": torch.ones(rows, WIDTH, dtype=torch.bool),
                }
            )
        assert method is RewardWorker.score
        prompt = batch["prompts"][:, 0]
        right = torch.tensor([self.teaches(int(number)) for number in prompt])
        rewards = (right & (batch["sample_ids"] == 0)).float()
        rewards[torch.tensor([self.silent(int(number)) for number in prompt])] = float("nan")
        meta = {"counts": {"reward/n": 1}, "failures": self.failures}
        return DataProto({"rewards": rewards}, meta={"replicas": [meta]})


def session_of(teaches, *, rounds: int = 1, silent=lambda number: False, **algorithm) -> Session:
    config = Config(
        data=DataConfig(train_files=["x"], train_batch_size=4, max_response_length=WIDTH),
        rollout=RolloutConfig(group_size=2, generation_rounds=rounds),
        algorithm=AlgorithmConfig(**algorithm),
        trainer=TrainerConfig(num_workers=1),
    )
    workers = FakeWorkers(teaches, silent)
    parts = SimpleNamespace(actors=workers, graders=workers, prompts=FakePrompts())
    return Session(config=config, timer=StageTimer(), kl=KlController(coef=0.0), **vars(parts))  # type: ignore[arg-type]


def prompts_of(batch: DataProto) -> list[int]:
    return batch["prompts"][::2, 0].tolist()


def test_one_round_keeps_every_group():
    session = session_of(lambda number: False)
    rollout = sample_rollout(session, 7)
    assert prompts_of(rollout.batch) == [0, 1, 2, 3]
    assert session.prompts.draws == [(0, 4, 7, 0)]
    assert rollout.metrics == {"data/prompts_consumed": 4.0}
    assert session.timer.collect().keys() == {"time/data", "time/generate", "time/reward", "time/step"}


def test_groups_without_signal_are_replaced_by_the_next_prompts():
    # Even prompts teach: 0 and 2 of the first four. Half of four drawn taught, so two are missing and four are drawn:
    # 4 and 6 complete the batch.
    session = session_of(lambda number: number % 2 == 0, rounds=3)
    rollout = sample_rollout(session, 7)
    assert session.prompts.draws == [(0, 4, 7, 0), (4, 4, 7, 4)]
    assert prompts_of(rollout.batch) == [0, 2, 4, 6]
    assert rollout.batch["group_ids"].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert rollout.reward_meta == [{"counts": {"reward/n": 1}, "failures": {}}] * 2
    assert rollout.metrics == {
        "data/prompts_consumed": 8.0,
        "sampling/rounds": 2.0,
        "sampling/prompts_drawn": 8.0,
        "sampling/groups_without_signal": 0.5,
        "sampling/reward_mean": 0.25,
        "sampling/reward_std": pytest.approx(0.25 * 3**0.5),
        "sampling/reward_stderr": pytest.approx(0.25 / 7**0.5),  # means of 0.5 and 0, four groups each
    }
    # The next step, here of a resumed run, goes on behind what was drawn, the groups that were left over included.
    resumed = session_of(lambda number: number % 2 == 0, rounds=3)
    resumed.prompts_consumed = 8
    for either in (session, resumed):
        assert prompts_of(sample_rollout(either, 8).batch) == [8, 10, 12, 14]


def test_a_full_batch_draws_once():
    session = session_of(lambda number: True, rounds=3)
    assert sample_rollout(session, 0).metrics["sampling/rounds"] == 1.0
    assert session.prompts_consumed == 4


def test_after_the_last_round_dropped_groups_keep_the_size():
    # Only prompt 5 teaches: 4 of 4 are missing, then 3, of which one in eight would teach, so no more than a batch.
    session = session_of(lambda number: number == 5, rounds=3)
    rollout = sample_rollout(session, 0)
    assert [draw[:2] for draw in session.prompts.draws] == [(0, 4), (4, 4), (8, 4)]
    assert prompts_of(rollout.batch) == [0, 1, 2, 5]
    assert rollout.metrics["sampling/groups_without_signal"] == pytest.approx(11 / 12)


def test_how_many_prompts_are_drawn():
    assert prompts_to_draw(16, 16, 16) == 0
    assert prompts_to_draw(16, 20, 18) == 0
    assert prompts_to_draw(16, 16, 12) == 6  # 4 missing, three of four teach: 5.33
    assert prompts_to_draw(16, 16, 0) == 16


def test_a_group_without_two_rewards_teaches_nothing():
    nan = float("nan")
    rewards = torch.tensor([nan, nan, 1.0, nan, 0.0, 1.0, 0.0, 1.0, nan])
    kept = chosen_rows(rewards, torch.tensor([6, 6, 7, 7, 8, 8, 9, 9, 9]), 2)
    assert kept.tolist() == [False] * 4 + [True] * 5


def test_responses_without_an_opinion_are_left_out_of_the_loss():
    session = session_of(lambda number: number % 2 == 0, silent=lambda number: number == 2)
    batch = sample_rollout(session, 0).batch
    assert batch["rewards"].isnan().tolist() == [False] * 4 + [True] * 2 + [False] * 2
    counted = batch["response_mask"].any(dim=1).tolist()
    assert counted == [True] * 4 + [False] * 2 + [True] * 2


def test_a_step_whose_reward_function_always_fails_stops_before_the_update(tmp_path):
    told: list[str] = []
    session = session_of(lambda number: False)
    session.graders.failures = {"score": [8, 8, "f.py:score: ValueError: no\nTraceback: here"]}
    session.reward_failures = RewardFailures(tmp_path / "failures.txt", told.append)
    with pytest.raises(
        RewardError, match=r"failed on all of 8 responses: f.py:score: ValueError: no.*all_failed_action=warn"
    ):
        sample_rollout(session, 0)
    assert len(told) == 1
    assert "8 of 8 responses score 0" in told[0]
    assert (tmp_path / "failures.txt").read_text() == "f.py:score: ValueError: no\nTraceback: here\n\n"
    session.reward_failures = RewardFailures(None, told.append, "warn")
    for _ in range(2):
        sample_rollout(session, 0)
    assert len(told) == 2  # the first failure of a run alone
    session.graders.failures = {"score": [8, 7, "f.py:score: ValueError: no"]}
    session.reward_failures = RewardFailures(None, told.append)
    sample_rollout(session, 0)
    assert len(told) == 3


def test_greedy_responses_are_generated_once_a_prompt_and_only_when_needed():
    session = session_of(lambda number: number % 2 == 1, advantage="remax", overlong_buffer=2)
    batch = sample_rollout(session, 0).batch
    assert "time/greedy_baseline" in session.timer.collect()
    session.actors.calls.clear()
    shuffled = batch.rows([5, 0, 7, 2, 1, 4, 3, 6])
    found = greedy_rewards(session, shuffled)
    (_, asked, sampling), _ = session.actors.calls
    assert asked == 4 and sampling.greedy
    # Odd prompts earn 1; 9 of 10 tokens are one into the buffer of two, which costs a half.
    assert shuffled["group_ids"].tolist() == [2, 0, 3, 1, 0, 2, 1, 3]
    assert found.tolist() == [-0.5, -0.5, 0.5, 0.5, -0.5, -0.5, 0.5, 0.5]
    assert shuffled["greedy_rewards"].equal(found)


def test_whole_groups_in_mini_batches_of_equal_size():
    group_ids = torch.arange(12).repeat_interleave(3)
    mini_batch = assign_mini_batches(group_ids, 4, seed=1, step=5)
    assert mini_batch.bincount().tolist() == [9, 9, 9, 9]  # 3 groups of 3 rows each
    by_group = mini_batch.reshape(12, 3)
    assert (by_group == by_group[:, :1]).all()


def test_the_draw_depends_on_seed_and_step_alone():
    group_ids = torch.arange(64).repeat_interleave(2)
    first = assign_mini_batches(group_ids, 8, seed=1, step=5)
    assert first.equal(assign_mini_batches(group_ids, 8, seed=1, step=5))
    assert not first.equal(assign_mini_batches(group_ids, 8, seed=1, step=6))
    assert not first.equal(assign_mini_batches(group_ids, 8, seed=2, step=5))


def test_the_order_of_rows_does_not_matter():
    group_ids = torch.arange(16).repeat_interleave(2)
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    expected = assign_mini_batches(group_ids, 4, seed=3, step=0)[shuffled]
    assert assign_mini_batches(group_ids[shuffled], 4, seed=3, step=0).equal(expected)


def test_balanced_mini_batches_have_equal_groups_and_near_equal_tokens():
    generator = torch.Generator().manual_seed(0)
    group_ids = torch.arange(48).repeat_interleave(2)
    tokens = torch.randint(10, 1000, (96,), generator=generator)
    mini_batch = assign_mini_batches(group_ids, 6, seed=1, step=0, tokens=tokens)
    assert mini_batch.bincount().tolist() == [16] * 6
    by_group = mini_batch.reshape(48, 2)
    assert (by_group == by_group[:, :1]).all()

    def spread(dealt):
        totals = torch.zeros(6, dtype=torch.int64).scatter_add(0, dealt, tokens)
        return int(totals.max() - totals.min())

    longest = int(tokens.reshape(48, 2).sum(dim=1).max())
    unbalanced = spread(assign_mini_batches(group_ids, 6, seed=1, step=0))
    assert spread(mini_batch) <= min(longest, unbalanced // 4)


def test_balanced_mini_batches_by_hand():
    # Groups of 9, 8, 3, 1 tokens: 9 and 8 are dealt first, then the 3 to the 8 and the 1 to the 9.
    tokens = torch.tensor([1, 8, 9, 3])
    mini_batch = assign_mini_batches(torch.arange(4), 2, seed=0, step=0, tokens=tokens)
    assert mini_batch[0] == mini_batch[2] != mini_batch[1] == mini_batch[3]


def test_the_place_of_a_long_group_is_drawn():
    tokens = torch.tensor([100, 1, 1, 1])
    places = {int(assign_mini_batches(torch.arange(4), 4, seed=0, step=step, tokens=tokens)[0]) for step in range(40)}
    assert places == {0, 1, 2, 3}


def test_one_mini_batch_takes_all():
    assert assign_mini_batches(torch.arange(5), 1, seed=0, step=0).tolist() == [0] * 5
