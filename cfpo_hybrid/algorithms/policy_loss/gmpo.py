"""Geometric-mean policy optimisation: clips each token, then takes the geometric mean of a response."""

import math
from dataclasses import dataclass

import torch

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs, clamp
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss
from cfpo_hybrid.registry import check_positive


@dataclass(frozen=True, kw_only=True)
class GmpoConfig:
    """Knobs of ``gmpo``, in nats: bounds on log-ratios, so named that nobody takes them for bounds on ratios."""

    log_clip_low: float = 0.4
    """With A < 0, log-ratios below -log_clip_low are clipped."""
    log_clip_high: float = 0.4
    """With A > 0, log-ratios above log_clip_high are clipped."""

    def __post_init__(self) -> None:
        check_positive(log_clip_low=self.log_clip_low, log_clip_high=self.log_clip_high)

    @property
    def trust_region(self) -> TrustRegion:
        """[exp(-log_clip_low), exp(log_clip_high)] as distances from 1."""
        return TrustRegion(low=-math.expm1(-self.log_clip_low), high=math.expm1(self.log_clip_high))


@register_policy_loss(
    "gmpo",
    config=GmpoConfig,
    trust_region=lambda config: config.trust_region,
    stops_gradient=True,
    aggregations=["seq_mean_token_mean"],
)
def gmpo(inputs: PolicyLossInputs, config: GmpoConfig) -> PerToken:
    """The loss -s A at each token, s = exp(mean of the clipped log r over the response).

    Zhao et al., 2025 (arXiv 2507.20673), with its bounds. A token is clipped on the side that its
    advantage pulls to, as in PPO, and leaves the gradients of the others alone, unlike GSPO's clip of the whole response.
    Advantages may differ along a response, so the gradient is handed out as in GSPO-token (arXiv 2507.18071, equation
    14): a token that is not clipped is moved by s A with its own A. Where all tokens of a response share an advantage
    that is GMPO's own gradient.
    """
    for_positive = clamp(inputs.log_ratio, high=config.log_clip_high)
    for_negative = clamp(inputs.log_ratio, low=-config.log_clip_low)
    clipped = torch.where(inputs.advantages > 0, for_positive, for_negative)
    return -inputs.sequence_ratio(clipped) * inputs.advantages
