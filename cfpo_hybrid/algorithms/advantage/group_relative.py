"""Estimators that compare a response with the others to the same prompt."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.advantage.groups import RewardGroups
from cfpo_hybrid.algorithms.advantage.registry import NoKnobs, register_advantage


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """Knobs of ``grpo``."""

    std_floor: float = 1e-6
    """Added to the standard deviation of a group; verl and DeepSeekMath's GRPO have 1e-6, TRL has 1e-4."""

    def __post_init__(self) -> None:
        if not 0 < self.std_floor < float("inf"):
            raise ValueError(f"std_floor={self.std_floor} must be a positive number")


@register_advantage("grpo", config=GrpoConfig)
def grpo(groups: RewardGroups, config: GrpoConfig) -> Tensor:
    """(R - mean) / (std + std_floor), std unbiased (n - 1): equation 9 of the CFPO paper (Shao et al., 2024)."""
    variance = groups.sum(groups.centred.square()) / (groups.sizes - 1)
    return groups.centred / groups.spread(variance.sqrt() + config.std_floor)


@register_advantage("grpo_no_std")
def grpo_no_std(groups: RewardGroups, config: NoKnobs) -> Tensor:
    """R - mean: without the std, groups of rare success are not blown up."""
    return groups.centred


@register_advantage("dr_grpo")
def dr_grpo(groups: RewardGroups, config: NoKnobs) -> Tensor:
    """R - mean: ``grpo_no_std`` under the name of its paper, Dr. GRPO (Liu et al., 2025, arXiv 2503.20783).

    Its other half is a division by a constant length: ``algorithm.loss_aggregation=seq_mean_token_sum_norm``.
    """
    return groups.centred


@register_advantage("rloo")
def rloo(groups: RewardGroups, config: NoKnobs) -> Tensor:
    """R - mean of the others = n / (n - 1) (R - mean): equation 10 of the CFPO paper (Ahmadian et al., 2024)."""
    return groups.centred * groups.spread(groups.sizes / (groups.sizes - 1))


@register_advantage("opo", needs=["response_lengths"])
def opo(groups: RewardGroups, config: NoKnobs) -> Tensor:
    """R - mean weighted by length, sum(l R) / sum(l): Hao et al., 2025 (arXiv 2505.23585).

    The baseline of least variance if every token's gradient has the same norm and they are orthogonal. A group whose
    responses are all empty has no weights, and keeps the plain mean.
    """
    assert groups.lengths is not None, "declared as a need"
    total = groups.sum(groups.lengths)
    offset = groups.sum(groups.lengths * groups.centred) / total.clamp(min=1)
    return groups.centred - groups.spread(offset)
