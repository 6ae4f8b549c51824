"""Step 5: the KL penalty in the reward, and what estimators are given."""

import pytest
import torch

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.protocol import DataProto
from trainer.rollout.advantages import advantages_of, overlong_penalty
from workers.config import AlgorithmConfig


def batch_of(**columns):
    return DataProto(
        {
            "rewards": torch.tensor([1.0, 0.0]),
            "group_ids": torch.tensor([0, 0]),
            "response_lengths": torch.tensor([1, 3]),
            **columns,
        }
    )


def test_the_reward_carries_the_kl_penalty_when_told_to():
    # Rewards 1 - 0.5 * 2 = 0 and 0 - 0.5 * 1 = -0.5: centred on -0.25.
    batch = batch_of(ref_kl=torch.tensor([2.0, 1.0]))
    algorithm = AlgorithmConfig(advantage="grpo_no_std")
    assert advantages_of(batch, algorithm, 0.5).tolist() == [0.25, -0.25]
    assert advantages_of(batch, algorithm, 0.0).tolist() == [0.5, -0.5]  # the penalty is in the loss, or nowhere


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_a_rollout_batch_has_what_the_estimators_need(name):
    batch = batch_of(greedy_rewards=torch.tensor([0.25, 0.25]))
    advantages = advantages_of(batch, AlgorithmConfig(advantage=name), 0.0)
    assert advantages.shape == (2,)
    if name == "remax":
        assert advantages.tolist() == [0.75, -0.25]


def test_long_responses_lose_reward():
    # 4 positions, a buffer of 2: lengths 1 and 3 lose 0 and 2 * (3 - 2) / 2 = 1, which leaves 1 and -1.
    batch = batch_of(responses=torch.zeros(2, 4, dtype=torch.int64))
    algorithm = AlgorithmConfig(advantage="grpo_no_std", overlong_buffer=2, overlong_penalty=2.0)
    assert overlong_penalty(batch, algorithm).tolist() == [0.0, 1.0]
    assert advantages_of(batch, algorithm, 0.0).tolist() == [1.0, -1.0]


def test_knobs_reach_the_estimator():
    algorithm = AlgorithmConfig(advantage="grpo", advantage_knobs={"std_floor": 1.0})
    # std of 1 and 0 is 0.7071: 0.5 / 1.7071
    assert advantages_of(batch_of(), algorithm, 0.0).tolist() == pytest.approx([0.2929, -0.2929], abs=1e-4)


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_rows_without_a_reward_change_nothing_for_the_others(name):
    nan = float("nan")
    some = {
        "rewards": torch.tensor([1.0, 0.0, -2.0, 0.5]),
        "group_ids": torch.tensor([0, 0, 2, 2]),
        "response_lengths": torch.tensor([1, 3, 2, 5]),
        "greedy_rewards": torch.tensor([0.25, 0.25, 0.0, 0.0]),
    }
    # Rows 1, 3 and 4 have no reward. In a group of one that has, there is nothing to compare.
    places = [0, 2, 5, 6]
    more = {
        "rewards": torch.tensor([1.0, nan, 0.0, nan, nan, -2.0, 0.5]),
        "group_ids": torch.tensor([0, 0, 0, 1, 1, 2, 2]),
        "response_lengths": torch.tensor([1, 4, 3, 2, 2, 2, 5]),
        "greedy_rewards": torch.tensor([0.25, 0.25, 0.25, 1.0, 1.0, 0.0, 0.0]),
    }
    algorithm = AlgorithmConfig(advantage=name)
    expected = advantages_of(DataProto(some), algorithm, 0.0)
    found = advantages_of(DataProto(more), algorithm, 0.0)
    assert torch.equal(found[places], expected)
    assert found[[1, 3, 4]].tolist() == [0.0] * 3


def test_a_group_with_one_reward_left_has_no_advantage():
    batch = batch_of(rewards=torch.tensor([1.0, float("nan")]))
    assert advantages_of(batch, AlgorithmConfig(advantage="grpo"), 0.0).tolist() == [0.0, 0.0]
