"""Clipped importance-sampling weights: the weight is clipped, the gradient of no token is."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig
from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs, clamp
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class CispoConfig(ClipConfig):
    """Knobs of ``cispo``: bounds on the importance weight."""

    clip_low: float = 1.0
    """Weights below 1 - clip_low are raised to it; 1 is no lower bound."""
    clip_high: float = 4.0
    """Weights above 1 + clip_high are lowered to it."""


@register_policy_loss("cispo", config=CispoConfig, stops_gradient=True)
def cispo(inputs: PolicyLossInputs, config: CispoConfig) -> PerToken:
    """The loss -w A log pi_theta, w = r clipped to [1 - clip_low, 1 + clip_high] and held fixed.

    MiniMax-M1 (arXiv 2506.13585), equations 4 and 5: REINFORCE with a bounded weight, so a token beyond the bound still
    learns. The paper sets no lower bound and names no number for the upper one; a largest weight of 5 is what TRL
    recommends after ScaleRL (arXiv 2510.13786). The metrics count tokens against 1 +- 0.2.
    """
    weight = clamp(inputs.ratio.detach(), low=1 - config.clip_low, high=1 + config.clip_high)
    return -weight * inputs.advantages * inputs.log_probs
