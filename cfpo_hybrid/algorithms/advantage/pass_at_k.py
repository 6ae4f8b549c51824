"""Advantages for the best of k responses, rather than for the mean response."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.advantage.groups import RewardGroups
from cfpo_hybrid.algorithms.advantage.registry import register_advantage


@dataclass(frozen=True, kw_only=True)
class PassAtKConfig:
    """Knobs of ``pass_at_k``."""

    k: int = 2
    """Size of the subsets whose best response counts; at most rollout.group_size."""

    def __post_init__(self) -> None:
        if self.k < 2:
            raise ValueError(f"k={self.k} must be at least 2: the best of 1 is what every other estimator is for")


@register_advantage("pass_at_k", config=PassAtKConfig, smallest_group=lambda config: config.k)
def pass_at_k(groups: RewardGroups, config: PassAtKConfig) -> Tensor:
    """How much a response raises the best of a random subset of k: mean of max(R - best of k - 1 others, 0).

    Walder and Karkhanis, 2025 (arXiv 2505.15201), the leave-one-out-minus-one baseline: an unbiased gradient of
    pass@k, divided by k, and of max@k for rewards that are no 0s and 1s. With k = n the best response gets what it is
    better than the second, all others 0: verl's ``grpo_passk`` before its division by the std (Tang et al., 2025,
    arXiv 2503.19595).
    Advantages are never negative.

    With the others sorted, the j-th (from 0) is the best of C(j, k - 2) of the C(n - 1, k - 1) subsets; those below the
    response itself, p of them, are C(p, k - 1) subsets in all. Hence
    (C(p, k - 1) R - sum over j < p of C(j, k - 2) R_j) / C(n - 1, k - 1).
    """
    order = _by_group_and_reward(groups)
    rewards, sizes = groups.centred[order], groups.sizes.long()
    starts = (sizes.cumsum(0) - sizes).index_select(0, groups.index[order])
    place = torch.arange(len(rewards)) - starts
    below = _sums_below(_subsets(place, config.k - 2) * rewards, starts)
    raised = (_subsets(place, config.k - 1) * rewards - below) / _subsets(
        groups.spread(groups.sizes)[order].long() - 1, config.k - 1
    )
    return torch.empty_like(raised).scatter(0, order, raised)


def _by_group_and_reward(groups: RewardGroups) -> Tensor:
    """Rows by group, and by reward within each: a stable sort after another."""
    by_reward = groups.centred.argsort()
    return by_reward[groups.index[by_reward].argsort(stable=True)]


def _sums_below(values: Tensor, starts: Tensor) -> Tensor:
    """Sum of the values before each row, from the start of its group on."""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return sums[:-1] - sums[starts]


def _subsets(items: Tensor, size: int) -> Tensor:
    """The number of subsets of ``size`` out of each number of items, fp64; 0 where there are fewer items."""
    steps = torch.arange(size, dtype=torch.float64)
    return ((items.double().unsqueeze(1) - steps).clamp(min=0) / (steps + 1)).prod(dim=1)
