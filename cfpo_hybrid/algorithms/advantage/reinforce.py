"""REINFORCE++: advantages normalised over the whole rollout batch."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.advantage.groups import RewardGroups
from cfpo_hybrid.algorithms.advantage.registry import register_advantage


@dataclass(frozen=True, kw_only=True)
class WhiteningConfig:
    """Knobs of ``reinforce_plus_plus`` and ``reinforce_plus_plus_baseline``."""

    std_floor: float = 1e-8
    """Added to the standard deviation of the batch."""

    def __post_init__(self) -> None:
        if not 0 < self.std_floor < float("inf"):
            raise ValueError(f"std_floor={self.std_floor} must be a positive number")


@register_advantage("reinforce_plus_plus", config=WhiteningConfig, smallest_group=lambda config: 1)
def reinforce_plus_plus(groups: RewardGroups, config: WhiteningConfig) -> Tensor:
    """(R - mean) / std over all responses of the rollout batch: Hu et al., 2025 (arXiv 2501.03262).

    A response counts once; OpenRLHF and verl, which whiten token by token, count it once a token. Without a KL in the
    reward and at a discount of 1, both as here, that is the only difference.
    """
    return _whiten(groups.rewards, config.std_floor)


@register_advantage("reinforce_plus_plus_baseline", config=WhiteningConfig)
def reinforce_plus_plus_baseline(groups: RewardGroups, config: WhiteningConfig) -> Tensor:
    """R - mean of the group, then divided by its std over the rollout batch: Hu et al., 2025 (arXiv 2501.03262)."""
    return _whiten(groups.centred, config.std_floor)


def _whiten(values: Tensor, std_floor: float) -> Tensor:
    """Mean 0 and unbiased std 1; a batch of one response, or of equal ones, gets 0."""
    # The first value is taken off so that equal ones leave exact zeros, which their mean in fp64 need not.
    shifted = values - values[0]
    centred = shifted - shifted.mean()
    std = (centred.square().sum() / max(len(values) - 1, 1)).sqrt()
    return centred / (std + std_floor)
