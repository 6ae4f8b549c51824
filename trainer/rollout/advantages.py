"""Step 5: what a rollout batch's rewards are worth, after the penalties that a reward may carry."""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.advantage import AdvantageInputs, build_advantage
from cfpo_hybrid.algorithms.rewards import overlong_punishment
from cfpo_hybrid.protocol import DataProto
from workers.config import AlgorithmConfig


def advantages_of(batch: DataProto, algorithm: AlgorithmConfig, kl_coef: float) -> Tensor:
    """The advantage of each row, ``[batch]``.

    Args:
        batch: with rewards, group_ids and response_lengths, ref_kl where the reward carries the KL penalty, and
            greedy_rewards where the estimator needs them.
        algorithm: which estimator, and the over-long penalty.
        kl_coef: weight of the KL penalty in the reward; 0 takes none.
    """
    rewards = batch["rewards"] - overlong_penalty(batch, algorithm)
    if kl_coef > 0:
        rewards = rewards - kl_coef * batch["ref_kl"]
    estimator = build_advantage(algorithm.advantage, **algorithm.advantage_knobs)
    return estimator(
        AdvantageInputs(
            rewards=rewards,
            group_ids=batch["group_ids"],
            response_lengths=batch["response_lengths"],
            greedy_rewards=batch["greedy_rewards"] if "greedy_rewards" in batch else None,
        )
    )


def overlong_penalty(batch: DataProto, algorithm: AlgorithmConfig) -> Tensor:
    """What each row loses of its reward for being close to the length limit, ``[batch]``, never negative."""
    lengths = batch["response_lengths"]
    if algorithm.overlong_buffer == 0:
        return torch.zeros(len(batch))
    # Response columns are as wide as the limit.
    punishment = overlong_punishment(lengths, batch.widths["response"], algorithm.overlong_buffer)
    return -algorithm.overlong_penalty * punishment
