"""PPO's clipped surrogate with a bound of its own for either side.

``clip_higher`` is its alias with the bounds of DAPO (Yu et al., 2025, arXiv 2503.14476, section 3.1). DAPO's other parts are
settings of their own, e.g. the aggregation ``token_mean``. ``dual_clip`` has a second bound for negative advantages.
"""

import math
from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs, clamp
from cfpo_hybrid.algorithms.policy_loss.registry import POLICY_LOSSES, TrustRegion, register_policy_loss
from cfpo_hybrid.registry import check_positive


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
        check_positive(clip_high=self.clip_high)

    @property
    def trust_region(self) -> TrustRegion:
        """[1 - clip_low, 1 + clip_high]."""
        return TrustRegion(low=self.clip_low, high=self.clip_high)


@dataclass(frozen=True, kw_only=True)
class ClipHigherConfig(ClipConfig):
    """Knobs of ``clip_higher``: those of ``clip`` with DAPO's bounds."""

    clip_high: float = 0.28
    """Ratios above 1 + clip_high are clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_high <= self.clip_low:
            raise ValueError(
                f"clip_high={self.clip_high} must be larger than clip_low={self.clip_low}; 'clip' takes any bounds"
            )


@register_policy_loss("clip", config=ClipConfig, trust_region=lambda config: config.trust_region)
def clip(inputs: PolicyLossInputs, config: ClipConfig) -> PerToken:
    """The loss -min(r A, clipped r A) with r clipped to [1 - clip_low, 1 + clip_high], and no further bound.

    With A+ = max(A, 0) and A- = min(A, 0) this is -(A+ min(r, 1 + clip_high) + A- max(r, 1 - clip_low)).

    Equation 6 of the CFPO paper; equation 7 of PPO (Schulman et al., 2017). Unequal bounds are DAPO's "clip higher".
    """
    return -clipped_surrogate(inputs.ratio, inputs.advantages, low=1 - config.clip_low, high=1 + config.clip_high)


POLICY_LOSSES.alias(
    "clip_higher",
    of="clip",
    config=ClipHigherConfig,
    summary="The loss of ``clip`` with r clipped to [1 - 0.2, 1 + 0.28]: rare tokens may gain more than they may lose.",
)


@dataclass(frozen=True, kw_only=True)
class DualClipConfig(ClipConfig):
    """Knobs of ``dual_clip``: those of ``clip``, and the second bound."""

    dual_clip: float = 3.0
    """With a negative advantage, ratios above this one are clipped too; verl's clip_ratio_c."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 + self.clip_high < self.dual_clip < float("inf"):
            raise ValueError(f"dual_clip={self.dual_clip} must be larger than 1 + clip_high = {1 + self.clip_high}")


@register_policy_loss("dual_clip", config=DualClipConfig, trust_region=lambda config: config.trust_region)
def dual_clip(inputs: PolicyLossInputs, config: DualClipConfig) -> PerToken:
    """The loss min(``clip``, -dual_clip A) where A < 0, ``clip`` elsewhere.

    Ye et al., 2020 (arXiv 1912.09729), equation 5: a token whose probability has risen far against its advantage stops
    pulling. It is verl's default loss, and a name of its own here since it changes what a baseline means.
    """
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return -clipped_surrogate(inputs.ratio, inputs.advantages, low=low, high=high, dual=config.dual_clip)


def clipped_surrogate(
    ratio: PerToken, advantages: PerToken, *, low: float, high: float, dual: float = math.inf
) -> PerToken:
    """A+ min(r, high) + A- min(max(r, low), dual); ``dual`` is infinite in plain PPO."""
    for_positive = advantages.clamp(min=0) * clamp(ratio, high=high)
    for_negative = advantages.clamp(max=0) * clamp(ratio, low=low, high=dual)
    return for_positive + for_negative
