"""Clipping-free policy optimisation: a quadratic penalty in the place of the clip.

``spo`` is its alias, the name of its origin: simple policy optimisation (Xie et al., 2025, arXiv 2401.16025), as equation
5 of the CFPO paper has it. SPO was proposed for control tasks with a critic, and normalises advantages within each
mini-batch; here they come as they are.
"""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import POLICY_LOSSES, TrustRegion, register_policy_loss
from cfpo_hybrid.registry import check_positive


@dataclass(frozen=True, kw_only=True)
class CfpoConfig:
    """Knobs of ``cfpo``."""

    epsilon: float = 0.2
    """Half-width of the trust region: the best ratio is 1 + epsilon for A > 0 and 1 - epsilon for A < 0."""

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon)


@register_policy_loss(
    "cfpo", config=CfpoConfig, trust_region=lambda config: TrustRegion(low=config.epsilon, high=config.epsilon)
)
def cfpo(inputs: PolicyLossInputs, config: CfpoConfig) -> PerToken:
    """The loss -(r A - |A| / (2 epsilon) (r - 1)^2), in fp32.

    Equation 7 of the CFPO paper, SPO's objective (its equation 5) a token. The gradient of the objective with respect
    to the log-prob is r (A - |A| (r - 1) / epsilon): A at r = 1, 0 at the best ratio, restoring beyond it. It grows
    like r^2 / epsilon there, so gradient clipping does real work.
    """
    penalty = inputs.advantages.abs() / (2 * config.epsilon) * (inputs.ratio - 1).square()
    return penalty - inputs.ratio * inputs.advantages


POLICY_LOSSES.alias(
    "spo",
    of="cfpo",
    summary="The loss -(r A - |A| / (2 epsilon) (r - 1)^2): the alias of ``cfpo`` under the name of its origin.",
)
