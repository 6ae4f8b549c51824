"""The metrics that come with every policy loss, from one micro-batch's tokens.

All of them are counted over tokens inside the mask, whatever the loss. With r the ratio, A the advantage, [1 - low,
1 + high] the loss's trust region and g the gradient of the policy loss with respect to a token's log-prob:

| metric | token counts, or value, averaged |
|---|---|
| ``actor/clip_fraction`` | A > 0 and r > 1 + high, or A < 0 and r < 1 - low: what PPO would clip |
| ``actor/clip_fraction_positive``, ``_negative`` | the same, as a share of the tokens with A > 0, with A < 0 |
| ``actor/outside_trust_region`` | r outside the trust region, whatever A |
| ``actor/ratio_deviation`` | abs(r - 1) |
| ``actor/tv`` | abs(r - 1) / 2: total variation between pi_old and pi_theta, estimated from tokens of pi_old |
| ``actor/ratio_q01`` ... ``_q99``, ``actor/ess`` | quantiles of r and effective sample size (``ratio_distribution.py``) |
| ``actor/zero_gradient_share`` | g = 0 |
| ``actor/corrective_share`` | descent on g moves the log-prob against A: g A > 0 |
| ``actor/clamped_share`` | the log-ratio was clamped |
| ``actor/kl_k1``, ``actor/kl_k3`` | KL(pi_old || pi_theta): -log r, and r - 1 - log r |
| ``actor/log_ratio_max``, ``_min`` | extremes of the unclamped log-ratio |
| ``actor/entropy`` | entropy in nats, when given |
| ``rollout/log_prob_diff_mean``, ``_max``, ``mismatch/...`` | of the rollout's log-probs, when given (``mismatch.py``) |
"""

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, Reduction
from cfpo_hybrid.algorithms.mismatch import mismatch_metrics
from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion
from cfpo_hybrid.algorithms.ratio_distribution import effective_sample_size, ratio_quantiles


@torch.no_grad()
def token_metrics(inputs: PolicyLossInputs, gradient: Tensor, trust_region: TrustRegion) -> dict[str, Metric]:
    """The table above for one micro-batch.

    Args:
        inputs: the micro-batch; its ratios are reused, not recomputed.
        gradient: of the policy loss with respect to ``inputs.log_probs``, 0 outside the mask.
        trust_region: the ratios that count as trusted.
    """
    # Outside the mask the ratio is 1 and the gradient 0, so most counts need no mask of their own. Products and
    # differences are counted rather than compared: on a CPU a comparison costs as much as three of them.
    advantages = inputs.counted(inputs.advantages)
    beyond = inputs.ratio - inputs.ratio.clamp(1 - trust_region.low, 1 + trust_region.high)
    raised, clipped = advantages > 0, beyond * advantages > 0
    clipped_positive, positive = _count(clipped & raised), _count(raised)
    clipped_any, deviation, tokens = _count(clipped), torch.expm1(inputs.log_ratio), inputs.num_counted
    distance = deviation.abs().sum()
    sums = {
        "actor/clip_fraction": clipped_any,
        "actor/outside_trust_region": _count(beyond),
        "actor/ratio_deviation": distance,
        "actor/tv": distance / 2,
        "actor/zero_gradient_share": tokens - _count(gradient),
        "actor/corrective_share": _count(gradient * advantages > 0),
        "actor/clamped_share": _count(inputs.unclamped_log_ratio - inputs.log_ratio),
        "actor/kl_k1": -inputs.log_ratio.sum(),
        "actor/kl_k3": (deviation - inputs.log_ratio).sum(),
    }
    if inputs.entropy is not None:
        sums["actor/entropy"] = inputs.counted(inputs.entropy).sum()
    metrics = {name: Metric(Reduction.MEAN, total, tokens) for name, total in sums.items()}
    by_sign = {
        "actor/clip_fraction_positive": Metric(Reduction.MEAN, clipped_positive, positive),
        "actor/clip_fraction_negative": Metric(
            Reduction.MEAN, clipped_any - clipped_positive, _count(advantages) - positive
        ),
    }
    distribution = {
        "actor/ratio_quantiles": ratio_quantiles(inputs),
        "actor/ess": effective_sample_size(deviation, tokens),
    }
    return metrics | by_sign | distribution | _extremes(inputs) | mismatch_metrics(inputs)


def _extremes(inputs: PolicyLossInputs) -> dict[str, Metric]:
    smallest, largest = inputs.range_of(inputs.unclamped_log_ratio)
    return {
        "actor/log_ratio_max": Metric(Reduction.MAX, largest),
        "actor/log_ratio_min": Metric(Reduction.MIN, smallest),
    }


def _count(values: Tensor) -> Tensor:
    return values.count_nonzero()
