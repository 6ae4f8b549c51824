"""The clipped surrogate with a second bound for negative advantages."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clipped_surrogate
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class DualClipConfig:
    """Knobs of ``dual_clip``."""

    clip_low: float = 0.2
    """Ratios below 1 - clip_low are clipped."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high are clipped."""
    dual_clip: float = 3.0
    """With a negative advantage, ratios above this one are clipped too; verl's clip_ratio_c."""

    def __post_init__(self) -> None:
        if not 1 + self.single.clip_high < self.dual_clip < float("inf"):
            raise ValueError(f"dual_clip={self.dual_clip} must be larger than 1 + clip_high = {1 + self.clip_high}")

    @property
    def single(self) -> ClipConfig:
        """The knobs of the clip underneath, checked by it."""
        return ClipConfig(clip_low=self.clip_low, clip_high=self.clip_high)


@register_policy_loss("dual_clip", config=DualClipConfig, trust_region=lambda config: config.single.trust_region)
def dual_clip(inputs: PolicyLossInputs, config: DualClipConfig) -> Tensor:
    """The loss min(``clip``, -dual_clip A) where A < 0, ``clip`` elsewhere.

    Ye et al., 2020 (arXiv 1912.09729), equation 5: a token whose probability has risen far against its advantage stops
    pulling. It is verl's default loss, and a name of its own here since it changes what a baseline means.
    """
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return -clipped_surrogate(inputs.ratio, inputs.advantages, low=low, high=high, dual=config.dual_clip)
