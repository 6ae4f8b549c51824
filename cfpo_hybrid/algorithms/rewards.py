"""Rewards of a rollout batch: what an advantage estimator sees of them, and what a long response loses of its own."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from cfpo_hybrid.errors import BatchError, ConfigError, NumericsError

OPTIONAL_INPUTS = ("response_lengths", "greedy_rewards")
"""The inputs that exist only when something needs them; an estimator names its own in ``needs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageInputs:
    """One rollout batch, a number a response.

    Args:
        rewards: of each response.
        group_ids: which responses answer the same prompt, any numbers in any order.
        response_lengths: tokens of each response; present when the estimator declares the need.
        greedy_rewards: reward of the greedy response to the same prompt; likewise.

    Raises:
        BatchError: shapes disagree.
        NumericsError: a reward is not finite.
    """

    rewards: Float[Tensor, " batch"]
    group_ids: Int[Tensor, " batch"]
    response_lengths: Int[Tensor, " batch"] | None = None
    greedy_rewards: Float[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        for name in ("group_ids", *OPTIONAL_INPUTS):
            tensor = getattr(self, name)
            if tensor is not None and (self.rewards.dim() != 1 or tensor.shape != self.rewards.shape):
                raise BatchError(
                    f"rewards {list(self.rewards.shape)} and {name} {list(tensor.shape)} must both be [batch]: "
                    f"one a response"
                )
        if not math.isfinite(float(self.rewards.double().sum())):
            row = int((~torch.isfinite(self.rewards)).nonzero()[0])
            raise NumericsError(
                f"reward {float(self.rewards[row])} of row {row} is not finite; check the reward function"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGroups:
    """Rewards by group, in fp64: there the mean of equal fp32 rewards is exact, and a group of them is centred on 0.

    Example: rewards [1, 0, 5, 7] of groups [8, 8, 9, 9]: ``index`` [0, 0, 1, 1], ``sizes`` [2, 2],
    ``centred`` [0.5, -0.5, -1, 1].
    """

    rewards: Float64[Tensor, " batch"]
    index: Int64[Tensor, " batch"]
    """Group of each response, counted from 0."""
    names: Int[Tensor, " group"]
    """The group_id of each group."""
    sizes: Float64[Tensor, " group"]
    """Responses of each group."""
    centred: Float64[Tensor, " batch"]
    """Reward minus the mean of its group."""
    lengths: Float64[Tensor, " batch"] | None
    """Tokens of each response, when the inputs had them."""
    greedy: Float64[Tensor, " batch"] | None
    """Reward of the greedy response to the prompt, when the inputs had it."""

    @classmethod
    def of(cls, inputs: AdvantageInputs) -> "RewardGroups":
        """The groups of a batch."""
        rewards = inputs.rewards.double()
        names, index, sizes = torch.unique(inputs.group_ids, return_inverse=True, return_counts=True)
        means = torch.zeros(len(names), dtype=torch.float64).scatter_add(0, index, rewards) / sizes
        return cls(
            rewards=rewards,
            index=index,
            names=names,
            sizes=sizes.double(),
            centred=rewards - means.index_select(0, index),
            lengths=None if inputs.response_lengths is None else inputs.response_lengths.double(),
            greedy=None if inputs.greedy_rewards is None else inputs.greedy_rewards.double(),
        )

    def sum(self, values: Float64[Tensor, " batch"]) -> Float64[Tensor, " group"]:
        """Sum of ``values`` over each group."""
        return torch.zeros_like(self.sizes).scatter_add(0, self.index, values)

    def spread(self, per_group: Float64[Tensor, " group"]) -> Float64[Tensor, " batch"]:
        """One number a group given to each of its responses."""
        return per_group.index_select(0, self.index)


def overlong_punishment(
    response_lengths: Int[Tensor, " batch"], max_length: int, buffer: int
) -> Float[Tensor, " batch"]:
    """DAPO's soft punishment, from 0 down to -1, fp32: clip((max_length - buffer - length) / buffer, -1, 0).

    Yu et al., 2025 (arXiv 2503.14476), equation 13, where ``buffer`` is L_cache.

    Example: a limit of 10 tokens and a buffer of 4: lengths 6, 7, 10 give 0, -0.25, -1.

    Args:
        response_lengths: tokens of each response.
        max_length: tokens that a response may have.
        buffer: tokens below that limit over which the punishment grows.

    Raises:
        ConfigError: the buffer does not lie between 1 and the limit.
    """
    if not 1 <= buffer <= max_length:
        raise ConfigError(f"buffer={buffer} must be from 1 to the {max_length} tokens that a response may have")
    return ((max_length - buffer - response_lengths).float() / buffer).clamp(-1, 0)
