"""Clipping-free policy optimisation: a quadratic penalty in the place of the clip."""

from dataclasses import dataclass

from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss


@dataclass(frozen=True, kw_only=True)
class CfpoConfig:
    """Knobs of ``cfpo``."""

    epsilon: float = 0.2
    """Half-width of the trust region: the best ratio is 1 + epsilon for A > 0 and 1 - epsilon for A < 0."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"epsilon={self.epsilon} must be a positive number")


@register_policy_loss(
    "cfpo", config=CfpoConfig, trust_region=lambda config: TrustRegion(low=config.epsilon, high=config.epsilon)
)
def cfpo(inputs: PolicyLossInputs, config: CfpoConfig) -> Tensor:
    """The loss -(r A - |A| / (2 epsilon) (r - 1)^2), in fp32.

    Equation 7 of the CFPO paper, SPO's objective (its equation 5) a token. The gradient of the objective with respect
    to the log-prob is r (A - |A| (r - 1) / epsilon): A at r = 1, 0 at the best ratio, restoring beyond it. It grows
    like r^2 / epsilon there, so gradient clipping does real work.
    """
    penalty = inputs.advantages.abs() / (2 * config.epsilon) * (inputs.ratio - 1).square()
    return penalty - inputs.ratio * inputs.advantages
