"""Trust regions by how far a token's probability has moved, not by its ratio: DPPO's masks, and DRPO's penalty.

Divergence proximal policy optimisation (``dppo_tv``, ``dppo_kl``) masks tokens beyond the region. Divergence-regularised
policy optimisation (``drpo``) is CFPO's quadratic penalty, weighed by the token's old probability.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cfpo_hybrid.algorithms.policy_loss.inputs import PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss

Divergence = Callable[[PerToken, PerToken], PerToken]
"""(log pi_old, log pi_theta) -> divergence of the two-outcome distributions "this token or another"."""


@dataclass(frozen=True, kw_only=True)
class DppoTvConfig:
    """Knobs of ``dppo_tv``."""

    delta: float = 0.2
    """Largest abs(pi_theta - pi_old) of a token that still moves away from the old policy."""

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta={self.delta} must lie in (0, 1]: probabilities differ by 1 at most")


@dataclass(frozen=True, kw_only=True)
class DrpoConfig(DppoTvConfig):
    """Knobs of ``drpo``."""

    delta: float = 0.2
    """Half-width of the trust region in probability: the best pi_theta is pi_old + delta for A > 0, - delta for A < 0."""


@dataclass(frozen=True, kw_only=True)
class DppoKlConfig:
    """Knobs of ``dppo_kl``."""

    delta: float = 0.08
    """Largest KL in nats; 2 x 0.2^2, so that by Pinsker's inequality the total variation is at most 0.2."""

    def __post_init__(self) -> None:
        if not 0 < self.delta < float("inf"):
            raise ValueError(f"delta={self.delta} must be a positive number of nats")


@register_policy_loss("dppo_tv", config=DppoTvConfig)
def dppo_tv(inputs: PolicyLossInputs, config: DppoTvConfig) -> PerToken:
    """The loss -M r A, M = 0 where A pulls r further from 1 and abs(pi_theta - pi_old) > delta, else 1.

    Qi et al., 2026 (arXiv 2602.04879), the binary total-variation mask. The mask allows a rare token a large ratio and
    a frequent one a small change. The paper takes pi_old from the rollout engine; here it is ``old_log_probs``,
    wherever those come from.
    """
    return _masked_surrogate(inputs, total_variation, config.delta)


@register_policy_loss("dppo_kl", config=DppoKlConfig)
def dppo_kl(inputs: PolicyLossInputs, config: DppoKlConfig) -> PerToken:
    """The loss -M r A, M = 0 where A pulls r further from 1 and the binary KL(pi_old || pi_theta) > delta, else 1.

    Qi et al., 2026 (arXiv 2602.04879), the binary KL mask: p log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p = pi_old
    and q = pi_theta of the token.
    """
    return _masked_surrogate(inputs, binary_kl, config.delta)


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


def total_variation(old_log_probs: PerToken, log_probs: PerToken) -> PerToken:
    """The absolute change of probability."""
    return (log_probs.exp() - old_log_probs.exp()).abs()


def binary_kl(old_log_probs: PerToken, log_probs: PerToken) -> PerToken:
    """KL of "this token or another" in nats; digits are kept for tokens of probability near 1."""
    smallest = torch.finfo(log_probs.dtype).tiny
    others, old_others = (-torch.expm1(each) for each in (log_probs, old_log_probs))
    moved_others = old_others * (old_others.clamp(min=smallest).log() - others.clamp(min=smallest).log())
    return old_log_probs.exp() * (old_log_probs - log_probs) + moved_others


def _masked_surrogate(inputs: PolicyLossInputs, divergence: Divergence, delta: float) -> PerToken:
    # Rounding can leave a log-prob above 0.
    old_log_probs, log_probs = inputs.old_log_probs.clamp(max=0), inputs.log_probs.detach().clamp(max=0)
    leaving = inputs.log_ratio * inputs.advantages > 0
    masked = leaving & (divergence(old_log_probs, log_probs) > delta)
    return torch.where(masked, 0.0, -inputs.ratio * inputs.advantages)
