"""The clipped surrogate with a second bound for negative advantages."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clipped_surrogate
from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


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
