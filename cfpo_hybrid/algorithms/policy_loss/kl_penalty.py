"""The quadratic penalty's rival: a KL penalty to the policy that sampled, as TRPO's Lagrangian has it."""

from dataclasses import dataclass

import torch

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion, register_policy_loss
from cfpo_hybrid.registry import check_positive


@dataclass(frozen=True, kw_only=True)
class KlPenaltyConfig:
    """Knobs of ``kl_penalty``."""

    epsilon: float = 0.2
    """The penalty weighs 1 / epsilon: near r = 1 it is that of ``cfpo`` with the same epsilon."""
    advantage_weighted: bool = True
    """Weighs the penalty of a token by abs(A) as CFPO does; false is PPO's equation 8 with beta = 1 / epsilon, whose
    pull on tokens with A = 0 ``cfpo check-loss`` reports."""

    def __post_init__(self) -> None:
        check_positive(epsilon=self.epsilon)


@register_policy_loss(
    "kl_penalty",
    config=KlPenaltyConfig,
    trust_region=lambda config: TrustRegion(low=config.epsilon, high=config.epsilon),
)
def kl_penalty(inputs: PolicyLossInputs, config: KlPenaltyConfig) -> PerToken:
    """The loss -(r A - w / epsilon (r - 1 - log r)), w = |A| or 1; r - 1 - log r estimates KL(pi_old || pi_theta).

    The KL-penalised surrogate of TRPO (Schulman et al., 2015, section 4) and PPO (Schulman et al., 2017, equation 8),
    with the estimator k3, whose gradient is the KL's. Beside ``cfpo`` it compares the divergences alone: both penalties
    are w / (2 epsilon) (r - 1)^2 near r = 1. Its best ratio is 1 / (1 - epsilon) for A > 0 and 1 / (1 + epsilon) for
    A < 0; its gradient with respect to the log-prob, r A - w (r - 1) / epsilon, grows like r where CFPO's grows like r^2.
    """
    weight = inputs.advantages.abs() if config.advantage_weighted else 1.0
    # r - 1 loses all its digits near r = 1; expm1 keeps them.
    divergence = torch.expm1(inputs.log_ratio) - inputs.log_ratio
    return weight / config.epsilon * divergence - inputs.ratio * inputs.advantages
