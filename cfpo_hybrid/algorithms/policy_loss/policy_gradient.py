"""The policy gradient without any trust region, plain or importance-weighted."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """Knobs of ``policy_gradient``."""

    importance_weighted: bool = False
    """Maximises r A, which stays unbiased off-policy as far as single tokens go, rather than A log pi."""


@register_policy_loss("policy_gradient", config=PolicyGradientConfig)
def policy_gradient(inputs: PolicyLossInputs, config: PolicyGradientConfig) -> PerToken:
    """The loss -A log pi_theta, or -A r when importance-weighted; nothing holds the policy back.

    REINFORCE (Williams, 1992); the weighted form is the conservative policy iteration surrogate, equation 6 of PPO
    (Schulman et al., 2017). Plain, it takes off-policy samples for on-policy ones: their gradient is A whatever r is.
    """
    return -inputs.advantages * (inputs.ratio if config.importance_weighted else inputs.log_probs)
