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
| ``actor/ratio_q01`` ... ``_q99``, ``actor/ess`` | quantiles of r and effective sample size |
| ``actor/zero_gradient_share`` | g = 0 |
| ``actor/corrective_share`` | descent on g moves the log-prob against A: g A > 0 |
| ``actor/clamped_share`` | the log-ratio was clamped |
| ``actor/kl_k1``, ``actor/kl_k3`` | KL(pi_old || pi_theta): -log r, and r - 1 - log r |
| ``actor/log_ratio_max``, ``_min`` | extremes of the unclamped log-ratio |
| ``actor/entropy`` | entropy in nats, when given |
| ``rollout/log_prob_diff_mean``, ``_max``, ``mismatch/...`` | of the rollout's log-probs, when given (``mismatch.py``) |

How the ratio is distributed over a mini-batch cannot be averaged over micro-batches and ranks, so each part gives what can
be summed: counts of a histogram for the quantiles, moments for the effective sample size. The bins of the histogram are
those of asinh(log r / 0.001), 0.02 wide: around r = 1 they are 2e-5 nats wide, beyond they grow with log r, and a quantile
is the middle of its bin, within 1 % of its log r. One bin lies around 0, so that on-policy every quantile is exactly 1.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, sample_size_share
from cfpo_hybrid.algorithms.mismatch import mismatch_metrics
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion

QUANTILES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
"""Shares of the tokens, at or below each quantile of the ratio."""
SCALE, WIDTH = 1e-3, 0.02
HALF = round(math.asinh(LOG_RATIO_LIMIT / SCALE) / WIDTH)
"""Bins on each side of the one around 0; clamped log-ratios fall into the last ones."""


@torch.no_grad()
def token_metrics(inputs: PolicyLossInputs, gradient: PerToken, trust_region: TrustRegion) -> dict[str, Metric]:
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
    metrics = {name: Metric.mean(total, tokens) for name, total in sums.items()}
    by_sign = {
        "actor/clip_fraction_positive": Metric.mean(clipped_positive, positive),
        "actor/clip_fraction_negative": Metric.mean(clipped_any - clipped_positive, _count(advantages) - positive),
    }
    smallest, largest = inputs.range_of(inputs.unclamped_log_ratio)
    distribution = {
        "actor/ratio": _quantiles(inputs),
        "actor/ess": Metric.of_sums(deviation.sum(), deviation.square().sum(), tokens, finish=_sample_size),
        "actor/log_ratio_max": Metric.largest(largest),
        "actor/log_ratio_min": Metric.smallest(smallest),
    }
    return metrics | by_sign | distribution | mismatch_metrics(inputs)


def _quantiles(inputs: PolicyLossInputs) -> Metric:
    """Of the ratio, from a histogram of the clamped log-ratio."""
    log_ratio = inputs.log_ratio.reshape(-1)
    bins = (log_ratio / SCALE).asinh_().div_(WIDTH).round_().nan_to_num_(nan=0.0).long().add_(HALF)
    counts = torch.zeros(2 * HALF + 1, dtype=log_ratio.dtype, device=log_ratio.device)
    counts.index_add_(0, bins, inputs.mask.reshape(-1).to(counts.dtype))
    return Metric((counts.double(),), _named_quantiles)


def _named_quantiles(name: str, counts: Sequence[float]) -> dict[str, float]:
    below = list(accumulate(counts))
    if not below[-1]:
        return {}
    bins = {share: bisect_left(below, share * below[-1]) - HALF for share in QUANTILES}
    return {f"{name}_q{100 * share:02.0f}": math.exp(SCALE * math.sinh(WIDTH * at)) for share, at in bins.items()}


def _sample_size(name: str, sums: Sequence[float]) -> dict[str, float]:
    """(sum r)^2 / (n sum r^2) from sums of r - 1 (Kong, 1992): 1 for equal ratios, 1 / n where one outweighs all others."""
    deviation, squares, count = sums
    if not count:
        return {}
    return {name: sample_size_share(count + deviation, count + 2 * deviation + squares, count)}


def _count(values: Shaped[Tensor, "*tokens"]) -> Int[Tensor, ""]:
    return values.count_nonzero()
