"""Estimators of the KL divergence to a reference, per sampled token (Schulman, "Approximating KL divergence", 2020).

With d = log pi - log pi_ref at a token sampled from pi, clamped to +-20 nats as the log-ratio of the losses is:

| name | value | |
|---|---|---|
| ``k1`` | d | unbiased, noisy, either sign; as a loss its expected gradient is 0 |
| ``k2`` | d^2 / 2 | biased, never negative; as a loss its gradient is that of the KL |
| ``k3`` | exp(-d) - 1 + d | unbiased, never negative, low variance |
"""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT
from cfpo_hybrid.errors import ConfigError

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_penalty(log_probs: Tensor, ref_log_probs: Tensor, estimator: str) -> Tensor:
    """KL(pi || pi_ref) per token in nats, fp32 (fp64 kept), shaped like ``log_probs``.

    Raises:
        ConfigError: the estimator is unknown.
    """
    wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    difference = (wide - ref_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    match estimator:
        case "k1":
            return difference
        case "k2":
            return difference.square() / 2
        case "k3":
            # exp(-d) - 1 loses all its digits for small d; expm1 keeps them.
            return torch.expm1(-difference) + difference
    raise ConfigError(f"algorithm.kl_estimator={estimator!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}")
