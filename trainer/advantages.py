"""Step 5: what a rollout batch's rewards are worth, after the KL penalty where the reward carries it."""

from torch import Tensor

from cfpo_hybrid.algorithms.advantage import AdvantageInputs, build_advantage
from cfpo_hybrid.protocol import DataProto
from workers.config import AlgorithmConfig

PROVIDED_INPUTS = frozenset({"response_lengths"})
"""Optional inputs of an estimator that a rollout batch has; there is no greedy response to take a baseline from."""


def advantages_of(batch: DataProto, algorithm: AlgorithmConfig, kl_coef: float) -> Tensor:
    """The advantage of each row, ``[batch]``.

    Args:
        batch: with rewards, group_ids and response_lengths, and ref_kl where the reward carries the KL penalty.
        algorithm: which estimator.
        kl_coef: weight of the penalty.
    """
    rewards = batch["rewards"] - kl_coef * batch["ref_kl"] if algorithm.kl_in_reward else batch["rewards"]
    estimator = build_advantage(algorithm.advantage, **algorithm.advantage_knobs)
    return estimator(
        AdvantageInputs(rewards=rewards, group_ids=batch["group_ids"], response_lengths=batch["response_lengths"])
    )


def mean_ref_kl(batch: DataProto) -> float | None:
    """KL to the reference in nats a response token, before the update; None where there is no reference."""
    if "ref_kl" not in batch:
        return None
    return float(batch["ref_kl"].double().sum() / batch["response_lengths"].sum().clamp(min=1))
