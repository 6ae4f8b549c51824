"""The KL divergence to the reference: estimators per sampled token, its sum over a response, and a steered coefficient.

Estimators are those of Schulman, "Approximating KL divergence", 2020.

With d = log pi - log pi_ref at a token sampled from pi, clamped to +-20 nats as the log-ratio of the losses is:

| name | value | |
|---|---|---|
| ``k1`` | d | unbiased, noisy, either sign; as a loss its expected gradient is 0 |
| ``k2`` | d^2 / 2 | biased, never negative; as a loss its gradient is that of the KL |
| ``k3`` | exp(-d) - 1 + d | unbiased, never negative, low variance |
| ``abs`` | abs(d) | biased, never negative; not squared, so outliers weigh less |
| ``k1+``, ``k3+``, ``abs+`` | that of k1, k3, abs | straight-through: the gradient is that of k2 |

The straight-through ones are verl's: the number that is reported is an estimate of the divergence, and the gradient is
that of the divergence. ``k2`` is its own.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PerToken
from cfpo_hybrid.errors import ConfigError

KL_ESTIMATORS = ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+")

LARGEST_KL_ERROR = 0.2
"""Relative distance from the target beyond which the coefficient moves no faster."""


def reference_kl(log_probs: PerToken, ref_log_probs: PerToken, estimator: str) -> PerToken:
    """KL(pi || pi_ref) per token in nats, fp32 (fp64 kept).

    Raises:
        ConfigError: the estimator is unknown.
    """
    if estimator not in KL_ESTIMATORS:
        raise ConfigError(f"KL estimator {estimator!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}")
    wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    difference = (wide - ref_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if not estimator.endswith("+"):
        return _estimate(difference, estimator)
    value, through = _estimate(difference.detach(), estimator.removesuffix("+")), _estimate(difference, "k2")
    return value + (through - through.detach())


def response_kl(
    log_probs: Float[Tensor, "batch response"],
    ref_log_probs: Float[Tensor, "batch response"],
    mask: Bool[Tensor, "batch response"],
    estimator: str,
) -> Float[Tensor, " batch"]:
    """KL of each response in nats: the sum over its counted tokens, fp32 (fp64 kept).

    The mask tells which tokens count; values elsewhere may be anything.
    """
    return torch.where(mask, reference_kl(log_probs, ref_log_probs, estimator), 0.0).sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KlController:
    """The coefficient of the KL penalty, fixed or steered towards a target KL.

    Ziegler et al., 2019 (arXiv 1909.08593), section 2.2: after n responses of mean KL k the coefficient is multiplied by
    1 + clip(k / target - 1, -0.2, 0.2) n / horizon.

    Example: ``KlController(coef=0.1, target=0.05, horizon=1000).after(0.1, 100)`` has the coefficient 0.102.
    """

    coef: float
    target: float | None = None
    """KL in nats a token; None keeps the coefficient."""
    horizon: int = 10_000
    """Responses over which the coefficient changes by at most a fifth."""

    def after(self, kl: float, responses: int) -> "KlController":
        """The controller after a rollout of so many responses with this mean KL a token."""
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -LARGEST_KL_ERROR), LARGEST_KL_ERROR)
        # A rollout of five horizons would otherwise make the coefficient 0 for good, and a larger one turn its sign.
        return replace(self, coef=self.coef * max(1 + error * responses / self.horizon, 0.5))


def _estimate(difference: PerToken, estimator: str) -> PerToken:
    match estimator:
        case "k1":
            return difference
        case "k2":
            return difference.square() / 2
        case "abs":
            return difference.abs()
        case _:
            # exp(-d) - 1 loses all its digits for small d; expm1 keeps them.
            return torch.expm1(-difference) + difference
