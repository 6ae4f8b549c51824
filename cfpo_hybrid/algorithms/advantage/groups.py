"""What an advantage estimator sees: rewards of responses, and which of them answer the same prompt."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError, NumericsError

OPTIONAL_INPUTS = ("response_lengths", "greedy_rewards")
"""The inputs that exist only when something needs them; an estimator names its own in ``needs``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageInputs:
    """One rollout batch, a number a response.

    Args:
        rewards: ``[batch]``.
        group_ids: which responses answer the same prompt, ``[batch]`` int64, any numbers in any order.
        response_lengths: tokens of each response, ``[batch]``; present when the estimator declares the need.
        greedy_rewards: reward of the greedy response to the same prompt, ``[batch]``; likewise.

    Raises:
        BatchError: shapes disagree.
        NumericsError: a reward is not finite.
    """

    rewards: Tensor
    group_ids: Tensor
    response_lengths: Tensor | None = None
    greedy_rewards: Tensor | None = None

    def __post_init__(self) -> None:
        present = {"group_ids": self.group_ids, "response_lengths": self.response_lengths}
        present["greedy_rewards"] = self.greedy_rewards
        for name, tensor in present.items():
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

    rewards: Tensor
    """``[batch]`` fp64."""
    index: Tensor
    """Group of each response counted from 0, ``[batch]``."""
    names: Tensor
    """The group_id of each group, ``[group]``."""
    sizes: Tensor
    """Responses of each group, ``[group]`` fp64."""
    centred: Tensor
    """Reward minus the mean of its group, ``[batch]`` fp64."""
    lengths: Tensor | None
    """Tokens of each response, ``[batch]`` fp64, when the inputs had them."""
    greedy: Tensor | None
    """Reward of the greedy response to the prompt, ``[batch]`` fp64, when the inputs had them."""

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

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over each group, ``[group]``."""
        return torch.zeros_like(self.sizes).scatter_add(0, self.index, values)

    def spread(self, per_group: Tensor) -> Tensor:
        """One number a group given to each of its responses, ``[batch]``."""
        return per_group.index_select(0, self.index)
