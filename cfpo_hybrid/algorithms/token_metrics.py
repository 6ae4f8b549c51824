"""The metrics that come with every policy loss, from one micro-batch's tokens.

All of them are counted over tokens inside the mask, whatever the loss. With r the ratio, A the advantage, [1 - low,
1 + high] the loss's trust region and g the gradient of the policy loss with respect to a token's log-prob:

| metric | token counts, or value, averaged |
|---|---|
| ``actor/clip_fraction`` | A > 0 and r > 1 + high, or A < 0 and r < 1 - low: what PPO would clip |
| ``actor/clip_fraction_positive``, ``_negative`` | the same, as a share of the tokens with A > 0, with A < 0 |
| ``actor/outside_trust_region`` | r outside the trust region, whatever A |
| ``actor/ratio_deviation`` | abs(r - 1) |
| ``actor/zero_gradient_share`` | g = 0 |
| ``actor/corrective_share`` | descent on g moves the log-prob against A: g A > 0 |
| ``actor/clamped_share`` | the log-ratio was clamped |
| ``actor/kl_k1``, ``actor/kl_k3`` | KL(pi_old || pi_theta): -log r, and r - 1 - log r |
| ``actor/log_ratio_max``, ``_min`` | extremes of the unclamped log-ratio |
| ``actor/entropy`` | entropy in nats, when given |
| ``rollout/log_prob_diff_mean``, ``_max`` | abs(old - rollout log-prob), when given |
"""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.kl import kl_of_log_ratio
from cfpo_hybrid.algorithms.metrics import Metric, Reduction
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion


@torch.no_grad()
def token_metrics(inputs: PolicyLossInputs, gradient: Tensor, trust_region: TrustRegion) -> dict[str, Metric]:
    """The table above for one micro-batch.

    Args:
        inputs: the micro-batch; its ratios are reused, not recomputed.
        gradient: of the policy loss with respect to ``inputs.log_probs``, 0 outside the mask.
        trust_region: the ratios that count as trusted.
    """
    # Outside the mask the ratio is 1 and the gradient 0, so most counts need no mask of their own.
    above, below = inputs.ratio > 1 + trust_region.high, inputs.ratio < 1 - trust_region.low
    raised, lowered = inputs.advantages > 0, inputs.advantages < 0
    clipped_positive, clipped_negative = _count(raised & above), _count(lowered & below)
    deviation, excess = inputs.ratio - 1, inputs.unclamped_log_ratio.abs() > LOG_RATIO_LIMIT
    tokens = _count(inputs.mask)
    sums = {
        "actor/clip_fraction": clipped_positive + clipped_negative,
        "actor/outside_trust_region": _count(above | below),
        "actor/ratio_deviation": deviation.abs().sum(),
        "actor/zero_gradient_share": _count((gradient == 0) & inputs.mask),
        "actor/corrective_share": _count((gradient > 0) & raised) + _count((gradient < 0) & lowered),
        "actor/clamped_share": _count(excess),
        "actor/kl_k1": -inputs.log_ratio.sum(),
        "actor/kl_k3": kl_of_log_ratio(-inputs.log_ratio, "k3").sum(),
    }
    if inputs.entropy is not None:
        sums["actor/entropy"] = torch.where(inputs.mask, inputs.entropy, 0.0).sum()
    metrics = {name: Metric(Reduction.MEAN, total, tokens) for name, total in sums.items()}
    by_sign = {
        "actor/clip_fraction_positive": Metric(Reduction.MEAN, clipped_positive, _count(raised & inputs.mask)),
        "actor/clip_fraction_negative": Metric(Reduction.MEAN, clipped_negative, _count(lowered & inputs.mask)),
    }
    return metrics | by_sign | _extremes(inputs) | _rollout_metrics(inputs, tokens)


def _extremes(inputs: PolicyLossInputs) -> dict[str, Metric]:
    counted = inputs.unclamped_log_ratio
    return {
        "actor/log_ratio_max": Metric(Reduction.MAX, _largest(counted, inputs.mask)),
        "actor/log_ratio_min": Metric(Reduction.MIN, -_largest(-counted, inputs.mask)),
    }


def _rollout_metrics(inputs: PolicyLossInputs, tokens: Tensor) -> dict[str, Metric]:
    if inputs.rollout_log_probs is None:
        return {}
    difference = torch.where(inputs.mask, (inputs.old_log_probs - inputs.rollout_log_probs).abs(), 0.0)
    return {
        "rollout/log_prob_diff_mean": Metric(Reduction.MEAN, difference.sum(), tokens),
        "rollout/log_prob_diff_max": Metric(Reduction.MAX, _largest(difference, inputs.mask)),
    }


def _count(tokens: Tensor) -> Tensor:
    return tokens.count_nonzero()


def _largest(values: Tensor, mask: Tensor) -> Tensor:
    # One more element makes the maximum of nothing -inf instead of an error.
    counted = torch.where(mask, values, float("-inf")).flatten()
    return torch.cat([counted, counted.new_full((1,), float("-inf"))]).amax()
