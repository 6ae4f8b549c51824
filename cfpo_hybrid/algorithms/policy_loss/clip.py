"""PPO's clipped surrogate with a bound of its own for either side."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Knobs of ``clip``."""

    clip_low: float = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high are clipped."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"clip_low={self.clip_low} must lie in (0, 1]: a ratio is never below 0")
        if not 0 < self.clip_high < float("inf"):
            raise ValueError(f"clip_high={self.clip_high} must be a positive number")

    @property
    def trust_region(self) -> TrustRegion:
        """[1 - clip_low, 1 + clip_high]."""
        return TrustRegion(low=self.clip_low, high=self.clip_high)


@register_policy_loss("clip", config=ClipConfig, trust_region=lambda config: config.trust_region)
def clip(inputs: PolicyLossInputs, config: ClipConfig) -> Tensor:
    """The loss -min(r A, clipped r A) with r clipped to [1 - clip_low, 1 + clip_high], and no further bound.

    Equation 6 of the CFPO paper; equation 7 of PPO (Schulman et al., 2017). Unequal bounds are DAPO's "clip higher".
    """
    clipped = inputs.ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    return -torch.minimum(inputs.ratio * inputs.advantages, clipped * inputs.advantages)
