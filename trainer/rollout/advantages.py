"""Step 5: what a rollout batch's rewards are worth, after the penalties that a reward may carry."""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.advantage import Advantage, AdvantageInputs, build_advantage
from cfpo_hybrid.algorithms.rewards import overlong_punishment
from cfpo_hybrid.protocol import DataProto
from workers.config import AlgorithmConfig

NO_ADVANTAGE = 1e-6
"""Below this an advantage is rounding."""


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


def learns_from_equal_rewards(estimator: Advantage, group_size: int) -> bool:
    """Whether a group whose responses all earn the same gets advantages other than 0: it is tried out.

    Args:
        estimator: whose groups may have this size.
        group_size: responses of a prompt.
    """
    rewards = torch.ones(2, group_size)
    rewards[1, 0] = 0.0
    inputs = AdvantageInputs(
        rewards=rewards.flatten(),
        group_ids=torch.arange(2).repeat_interleave(group_size),
        response_lengths=torch.ones(2 * group_size, dtype=torch.int64),
        greedy_rewards=torch.full((2 * group_size,), 0.5),
    )
    return bool((estimator(inputs)[:group_size].abs() > NO_ADVANTAGE).any())


def mean_ref_kl(batch: DataProto) -> float | None:
    """KL to the reference in nats a response token, before the update; None where there is no reference."""
    if "ref_kl" not in batch:
        return None
    return float(batch["ref_kl"].double().sum() / batch["response_lengths"].sum().clamp(min=1))
