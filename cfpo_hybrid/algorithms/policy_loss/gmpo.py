"""Geometric-mean policy optimisation: clips each token, then takes the geometric mean of a response."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs, clamp
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss


@dataclass(frozen=True, kw_only=True)
class GmpoConfig:
    """Knobs of ``gmpo``, in nats: bounds on log-ratios, so named that nobody takes them for bounds on ratios."""

    log_clip_low: float = 0.4
    """With A < 0, log-ratios below -log_clip_low are clipped."""
    log_clip_high: float = 0.4
    """With A > 0, log-ratios above log_clip_high are clipped."""

    def __post_init__(self) -> None:
        for name, bound in (("log_clip_low", self.log_clip_low), ("log_clip_high", self.log_clip_high)):
            if not 0 < bound < math.inf:
                raise ValueError(f"{name}={bound} must be a positive number of nats")

    @property
    def trust_region(self) -> TrustRegion:
        """[exp(-log_clip_low), exp(log_clip_high)] as distances from 1."""
        return TrustRegion(low=-math.expm1(-self.log_clip_low), high=math.expm1(self.log_clip_high))


@register_policy_loss("gmpo", config=GmpoConfig, trust_region=lambda config: config.trust_region)
def gmpo(inputs: PolicyLossInputs, config: GmpoConfig) -> Tensor:
    """The loss -s A at each token, s = exp(mean of the clipped log r over the response).

    Zhao et al., 2025 (arXiv 2507.20673), with its bounds. A token is clipped on the side that its
    advantage pulls to, as in PPO, and leaves the gradients of the others alone, unlike GSPO's clip of the whole response.
    """
    for_positive = clamp(inputs.log_ratio, high=config.log_clip_high)
    for_negative = clamp(inputs.log_ratio, low=-config.log_clip_low)
    clipped = torch.where(inputs.advantages > 0, for_positive, for_negative)
    return -inputs.sequence_mean(clipped).exp() * inputs.advantages
