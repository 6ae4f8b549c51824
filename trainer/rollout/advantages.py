"""Step 5: what a rollout batch's rewards are worth, after the penalties that a reward may carry."""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.advantage import AdvantageInputs, build_advantage
from cfpo_hybrid.algorithms.rewards import overlong_punishment
from cfpo_hybrid.protocol import DataProto
from workers.config import AlgorithmConfig


def advantages_of(batch: DataProto, algorithm: AlgorithmConfig, kl_coef: float) -> Tensor:
    """The advantage of each row, ``[batch]``; a row without a reward has none of it and counts in no statistic.

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
    greedy = batch["greedy_rewards"] if "greedy_rewards" in batch else None
    kept = _comparable(rewards if greedy is None else rewards + greedy, batch["group_ids"], estimator.smallest_group)
    advantages = estimator(
        AdvantageInputs(
            rewards=rewards[kept],
            group_ids=batch["group_ids"][kept],
            response_lengths=batch["response_lengths"][kept],
            greedy_rewards=None if greedy is None else greedy[kept],
        )
    )
    return torch.zeros(len(rewards)).masked_scatter(kept, advantages)


def _comparable(rewards: Tensor, group_ids: Tensor, smallest_group: int) -> Tensor:
    """The rows with a reward, ``[batch]`` bool, less groups that lack so many rewards that nothing is left to compare."""
    known = ~rewards.isnan()
    if known.all():
        return known
    groups, row_to_group = torch.unique(group_ids, return_inverse=True)
    sizes = torch.zeros(len(groups), dtype=torch.int64).scatter_add(0, row_to_group, known.long())
    return known & (sizes >= smallest_group)[row_to_group]


def overlong_penalty(batch: DataProto, algorithm: AlgorithmConfig) -> Tensor:
    """What each row loses of its reward for being close to the length limit, ``[batch]``, never negative."""
    lengths = batch["response_lengths"]
    if algorithm.overlong_buffer == 0:
        return torch.zeros(len(batch))
    # Response columns are as wide as the limit.
    punishment = overlong_punishment(lengths, batch.widths["response"], algorithm.overlong_buffer)
    return -algorithm.overlong_penalty * punishment
