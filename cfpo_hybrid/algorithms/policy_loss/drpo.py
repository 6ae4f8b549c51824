"""Divergence-regularised policy optimisation: CFPO's quadratic penalty, weighed by the token's old probability."""

from dataclasses import dataclass

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class DrpoConfig:
    """Knobs of ``drpo``."""

    delta: float = 0.2
    """Half-width of the trust region in probability: the best pi_theta is pi_old + delta for A > 0, - delta for A < 0."""

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta={self.delta} must lie in (0, 1]: probabilities differ by 1 at most")


@register_policy_loss("drpo", config=DrpoConfig)
def drpo(inputs: PolicyLossInputs, config: DrpoConfig) -> PerToken:
    """The loss -(r A - |A| / (2 delta) pi_old (r - 1)^2).

    Yao et al., 2026 (arXiv 2606.09821): the soft form of ``dppo_tv``'s mask. The gradient of the objective with respect
    to the log-prob is r A (1 - sign(A) (pi_theta - pi_old) / delta). The factor beside r A is bounded by 1 + 1 / delta
    where CFPO's grows with r: a rare token that has risen is hardly held back. The default delta is ours, for a trust
    region as wide as ``dppo_tv``'s.
    """
    old_probability = inputs.old_log_probs.clamp(max=0).exp()
    penalty = inputs.advantages.abs() / (2 * config.delta) * old_probability * (inputs.ratio - 1).square()
    return penalty - inputs.ratio * inputs.advantages
