"""Metrics of a step against hand calculations, and the stage timer against a clock of its own."""

import math

import pytest
import torch

from cfpo_hybrid.protocol import DataProto
from trainer.run.metrics import (
    StageTimer,
    average_updates,
    length_metrics,
    mean_ref_kl,
    reward_metrics,
    rollout_step_seconds,
    throughput_metrics,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rewards_of_interleaved_groups_of_unequal_size():
    # groups: 7 -> {1, 1}, 3 -> {0, 0, 0}, 5 -> {1, 0}, 9 -> {0.5, 0.5}: one right, one wrong, three without signal
    group_ids = torch.tensor([7, 3, 5, 3, 7, 3, 5, 9, 9])
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.5])
    metrics = reward_metrics(rewards, group_ids, verdicts=rewards)
    # mean 4/9; E[x^2] = 3.5/9; variance = 3.5/9 - 16/81 = 15.5/81
    assert metrics == pytest.approx(
        {
            "reward/mean": 4 / 9,
            "reward/std": math.sqrt(15.5) / 9,
            # sums less 4/9 of their numbers: 10/9, -12/9, 1/9, 1/9; sqrt(4/3 x 246/81) / 9
            "reward/stderr": math.sqrt(328) / 81,
            "reward/min": 0.0,
            "reward/max": 1.0,
            "reward/groups_all_right": 1 / 4,
            "reward/groups_all_wrong": 1 / 4,
            "reward/groups_without_signal": 3 / 4,
        }
    )


def test_responses_without_a_reward_count_nowhere():
    nan = math.nan
    rewards, group_ids = torch.tensor([-3.0, nan, -1.0, nan, nan, -1.0]), torch.tensor([0, 0, 0, 1, 1, 2])
    assert reward_metrics(rewards, group_ids) == pytest.approx(
        {
            "reward/mean": -5 / 3,
            "reward/std": math.sqrt(8) / 3,
            "reward/stderr": 4 / 9,  # -4 + 10/3 and -1 + 5/3: sqrt(2 x 8/9) / 3
            "reward/min": -3.0,
            "reward/max": -1.0,
            "reward/groups_without_signal": 2 / 3,
        }
    )
    assert reward_metrics(torch.tensor([nan, nan]), torch.tensor([0, 1])) == {"reward/groups_without_signal": 1.0}
    # A group that nobody judged is neither right nor wrong.
    judged = reward_metrics(rewards, group_ids, verdicts=torch.tensor([0.0, nan, 0.0, nan, nan, 1.0]))
    assert judged["reward/groups_all_right"] == judged["reward/groups_all_wrong"] == pytest.approx(1 / 3)


def test_a_single_response_has_no_spread_rather_than_nan():
    metrics = reward_metrics(torch.tensor([1.0]), torch.tensor([0]))
    assert metrics["reward/std"] == 0.0
    assert "reward/stderr" not in metrics


def test_the_error_of_the_mean_is_that_of_the_groups():
    """Responses to one prompt are alike: 64 rewards know no more than their 16 groups."""
    of_groups = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metrics = reward_metrics(of_groups.repeat_interleave(4), torch.arange(16).repeat_interleave(4))
    assert metrics["reward/stderr"] == pytest.approx(of_groups.std().item() / 4)
    equal = reward_metrics(torch.full((6,), 0.1), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert equal["reward/stderr"] == 0.0


def test_lengths_and_truncated_share():
    metrics = length_metrics(torch.tensor([2, 4, 9]), torch.tensor([False, False, True]))
    assert metrics == pytest.approx(
        {
            "response_length/mean": 5.0,
            "response_length/max": 9.0,
            "response_length/min": 2.0,
            "response_length/truncated_share": 1 / 3,
        }
    )


def test_the_kl_to_the_reference_is_a_mean_over_tokens():
    lengths = {"response_lengths": torch.tensor([1, 3])}
    assert mean_ref_kl(DataProto({**lengths, "ref_kl": torch.tensor([2.0, 1.0])})) == 0.75  # 3 nats over 4 tokens
    assert mean_ref_kl(DataProto(lengths)) is None


def test_a_pace_does_not_hang_on_what_some_steps_do_besides():
    times = {"time/step": 20.0, "time/generate": 6.0, "time/validation": 9.0, "time/save": 1.0, "time/start": 2.0}
    assert rollout_step_seconds(times) == 8.0
    assert rollout_step_seconds({"time/step": 20.0, "time/generate": 6.0}) == 20.0


def test_nothing_to_measure_gives_no_metric():
    empty = torch.zeros(0)
    assert reward_metrics(empty, empty.long()) == {}
    assert length_metrics(empty.long(), empty.bool()) == {}
    assert throughput_metrics(10, 2, 0.0) == {}


def test_throughput():
    assert throughput_metrics(300, 6, 1.5) == {"perf/tokens_per_second": 200.0, "perf/samples_per_second": 4.0}


def test_updates_are_averaged_and_extremes_kept():
    updates = [
        {"actor/loss": 1.0, "actor/log_ratio_max": 0.3, "actor/log_ratio_min": -0.1},
        {"actor/loss": 2.0, "actor/log_ratio_max": 0.1, "actor/log_ratio_min": -0.4, "actor/extra": 5.0},
    ]
    assert average_updates(updates) == {
        "actor/loss": 1.5,
        "actor/log_ratio_max": 0.3,
        "actor/log_ratio_min": -0.4,
        "actor/extra": 5.0,
    }
    assert average_updates([]) == {}


def test_a_value_that_is_not_finite_is_not_averaged_away():
    averaged = average_updates([{"a": 1.0, "b": math.inf, "c_max": math.nan}, {"a": math.nan, "b": 1.0, "c_max": 1.0}])
    assert math.isnan(averaged["a"])
    assert averaged["b"] == math.inf
    assert math.isnan(averaged["c_max"])


def test_stages_add_up_and_a_collect_starts_over():
    clock, entered = Clock(), []
    timer = StageTimer(entered.append, clock)
    for _ in range(2):
        with timer.timed("generate"):
            clock.now += 2.0
    with timer.timed("update"):
        clock.now += 3.0
    clock.now += 0.5  # in no stage
    assert timer.collect() == {"time/generate": 4.0, "time/update": 3.0, "time/step": 7.5}
    with timer.timed("save"):
        clock.now += 1.0
    assert timer.collect() == {"time/save": 1.0, "time/step": 1.0}
    assert entered == ["generate", "generate", "update", "save"]


def test_a_stage_that_raises_is_timed():
    clock = Clock()
    timer = StageTimer(clock=clock)
    with pytest.raises(RuntimeError), timer.timed("generate"):
        clock.now += 2.0
        raise RuntimeError("no memory")
    assert timer.collect()["time/generate"] == 2.0
