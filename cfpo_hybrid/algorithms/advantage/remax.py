"""ReMax: the greedy response's reward as the baseline."""

from torch import Tensor

from cfpo_hybrid.algorithms.advantage.groups import RewardGroups
from cfpo_hybrid.algorithms.advantage.registry import NoKnobs, register_advantage


@register_advantage("remax", needs=["greedy_rewards"], smallest_group=lambda config: 1)
def remax(groups: RewardGroups, config: NoKnobs) -> Tensor:
    """R - reward of the greedy response to the same prompt: Li et al., 2023 (arXiv 2310.10505), algorithm 1."""
    assert groups.greedy is not None, "declared as a need"
    return groups.rewards - groups.greedy
