"""Soft adaptive policy optimisation: a sigmoid gate in the place of the clip."""

from dataclasses import dataclass

import torch

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss
from cfpo_hybrid.registry import check_positive


@dataclass(frozen=True, kw_only=True)
class SapoConfig:
    """Knobs of ``sapo``."""

    tau_positive: float = 1.0
    """How fast the gate closes as r leaves 1, for A > 0."""
    tau_negative: float = 1.05
    """The same for the other tokens; larger, since pushing one token down raises many."""

    def __post_init__(self) -> None:
        check_positive(tau_positive=self.tau_positive, tau_negative=self.tau_negative)


@register_policy_loss("sapo", config=SapoConfig)
def sapo(inputs: PolicyLossInputs, config: SapoConfig) -> PerToken:
    """The loss -4 / tau sigmoid(tau (r - 1)) A, with a tau for either sign of A.

    Gao et al., 2025 (arXiv 2511.20347), with its temperatures. With p the sigmoid the gradient of the objective with respect
    to the log-prob is 4 p (1 - p) r A: A at r = 1, fading on both sides, never turning against A as CFPO's does.
    """
    negative = torch.full_like(inputs.advantages, config.tau_negative)
    tau = negative.masked_fill(inputs.advantages > 0, config.tau_positive)
    return -4 / tau * torch.sigmoid(tau * (inputs.ratio - 1)) * inputs.advantages
