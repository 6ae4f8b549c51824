"""Simple policy optimisation, where CFPO's penalty comes from: the same loss under its first name."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.cfpo import CfpoConfig, cfpo
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss


@dataclass(frozen=True, kw_only=True)
class SpoConfig(CfpoConfig):
    """Knobs of ``spo``: those of ``cfpo``."""


@register_policy_loss(
    "spo", config=SpoConfig, trust_region=lambda config: TrustRegion(low=config.epsilon, high=config.epsilon)
)
def spo(inputs: PolicyLossInputs, config: SpoConfig) -> Tensor:
    """The loss -(r A - |A| / (2 epsilon) (r - 1)^2): the alias of ``cfpo`` under the name of its origin.

    Xie et al., 2025 (arXiv 2401.16025), as equation 5 of the CFPO paper has it. SPO was proposed for control tasks
    with a critic, and normalises advantages within each mini-batch; here they come from ``algorithm.advantage``.
    """
    return cfpo(inputs, config)
