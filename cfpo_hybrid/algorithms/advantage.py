"""Advantages from the rewards of a group of responses to one prompt: one number a response, no token axis.

Every estimator is a vectorised function of rewards and groups; groups may have any size of two or more, in any order.
Sums run in fp64, where the mean of equal fp32 rewards is exact: a group of equal rewards gets exactly 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.errors import BatchError, NumericsError
from cfpo_hybrid.registry import Registry

STD_FLOOR = 1e-6
"""Added to the standard deviation of a group, as verl and DeepSeekMath's GRPO do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGroups:
    """Rewards with what all estimators share.

    Example: rewards [1, 0, 5, 7] of groups [8, 8, 9, 9]: ``index`` [0, 0, 1, 1], ``sizes`` [2, 2],
    ``centred`` [0.5, -0.5, -1, 1].
    """

    index: Tensor
    """Group of each response counted from 0, ``[batch]``."""
    sizes: Tensor
    """Responses of each group, ``[group]`` fp64."""
    centred: Tensor
    """Reward minus the mean of its group, ``[batch]`` fp64."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over each group, ``[group]``."""
        return torch.zeros_like(self.sizes).scatter_add(0, self.index, values)

    def spread(self, per_group: Tensor) -> Tensor:
        """One number a group given to each of its responses, ``[batch]``."""
        return per_group.index_select(0, self.index)


AdvantageFunction = Callable[[RewardGroups], Tensor]
ADVANTAGES: Registry[AdvantageFunction] = Registry("advantage")


def register_advantage(name: str) -> Callable[[AdvantageFunction], AdvantageFunction]:
    """Registers ``function(groups) -> advantages [batch]`` under the name that ``algorithm.advantage`` uses.

    Raises:
        RegistryError: the name is taken.
    """

    def register(function: AdvantageFunction) -> AdvantageFunction:
        return ADVANTAGES.register(name, function)

    return register


@register_advantage("grpo")
def grpo(groups: RewardGroups) -> Tensor:
    """(R - mean) / (std + 1e-6) with the unbiased std (n - 1): equation 9 of the CFPO paper (Shao et al., 2024)."""
    variance = groups.sum(groups.centred.square()) / (groups.sizes - 1)
    return groups.centred / groups.spread(variance.sqrt() + STD_FLOOR)


@register_advantage("grpo_no_std")
def grpo_no_std(groups: RewardGroups) -> Tensor:
    """R - mean: without the std, groups of rare success are not blown up (Dr. GRPO, Liu et al., 2025)."""
    return groups.centred


@register_advantage("rloo")
def rloo(groups: RewardGroups) -> Tensor:
    """R - mean of the others = n / (n - 1) (R - mean): equation 10 of the CFPO paper (Ahmadian et al., 2024)."""
    return groups.centred * groups.spread(groups.sizes / (groups.sizes - 1))


def compute_advantages(name: str, rewards: Tensor, group_ids: Tensor) -> Tensor:
    """The advantage of each response, fp32 ``[batch]``.

    Args:
        name: a registered estimator.
        rewards: one number a response, ``[batch]``.
        group_ids: which responses answer the same prompt, ``[batch]`` int64, any numbers in any order.

    Raises:
        RegistryError: no such estimator.
        BatchError: shapes disagree, or a group has a single response and so nothing to be compared with.
        NumericsError: a reward is not finite.
    """
    estimator = ADVANTAGES.get(name)
    if rewards.dim() != 1 or rewards.shape != group_ids.shape:
        raise BatchError(
            f"rewards {list(rewards.shape)} and group_ids {list(group_ids.shape)} must both be [batch]: one a response"
        )
    wide = rewards.double()
    if not math.isfinite(float(wide.sum())):
        row = int((~torch.isfinite(rewards)).nonzero()[0])
        raise NumericsError(f"reward {float(rewards[row])} of row {row} is not finite; check the reward function")
    names, index, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if rewards.numel() and int(sizes.min()) < 2:
        lonely = int(names[sizes < 2][0])
        raise BatchError(
            f"group {lonely} has a single response, and {name} compares responses of a group; "
            f"set rollout.group_size to 2 or more"
        )
    counts = sizes.double()
    means = torch.zeros_like(counts).scatter_add(0, index, wide) / counts
    centred = wide - means.index_select(0, index)
    return estimator(RewardGroups(index=index, sizes=counts, centred=centred)).float()
