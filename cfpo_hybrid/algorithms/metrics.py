"""Metrics as sums and extremes: gathered as tensors, reduced once an optimizer step.

A mean over micro-batches of different sizes is wrong; a sum of sums over a sum of counts is right for every split.
Nothing here waits for the device before ``reduce``, which ends in one copy to the host.

``token_metrics`` are those that come with every policy loss, counted over tokens inside the mask. With r the ratio, A the
advantage, [1 - low, 1 + high] the loss's trust region and g the gradient of the policy loss with respect to a token's
log-prob:

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

How the ratio is distributed over a mini-batch cannot be averaged over micro-batches and ranks, so each part gives what can
be summed: counts of a histogram for the quantiles, moments for the effective sample size. The bins of the histogram are
those of asinh(log r / 0.001), 0.02 wide: around r = 1 they are 2e-5 nats wide, beyond they grow with log r, and a quantile
is the middle of its bin, within 1 % of its log r. One bin lies around 0, so that on-policy every quantile is exactly 1.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Literal

import torch
from jaxtyping import Float64, Num
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import TrustRegion

AllReduce = Callable[[Tensor, Literal["sum", "max"]], Tensor]
"""Reduces a vector over the ranks that hold different tokens, and returns it."""

Finish = Callable[[str, Sequence[float]], dict[str, float]]
"""From a metric's name and its sums over all parts, or its extreme, to the named numbers that they stand for; no number for
nothing."""

QUANTILES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
"""Shares of the tokens, at or below each quantile of the ratio."""
BIN_SCALE, BIN_WIDTH = 1e-3, 0.02
HALF_BINS = round(math.asinh(LOG_RATIO_LIMIT / BIN_SCALE) / BIN_WIDTH)
"""Bins on each side of the one around 0; clamped log-ratios fall into the last ones."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One micro-batch's part of a metric, detached on the device: sums that the parts add to, or an extreme.

    Example: 3 of 8 tokens clipped: ``Metric.mean(tensor(3.0), tensor(8.0))``.
    """

    values: tuple[Num[Tensor, "*sums"], ...]
    """Scalars, or vectors of like length in every part; each is added up by itself, and in its own dtype."""
    finish: Finish
    is_extreme: bool = False
    """The largest of the parts counts, and not their sum."""

    @classmethod
    def mean(cls, total: Num[Tensor, ""], count: Num[Tensor, ""]) -> "Metric":
        """The sum of all totals over that of all counts."""
        return cls((total, count), _mean)

    @classmethod
    def total(cls, value: Num[Tensor, ""]) -> "Metric":
        """The sum."""
        return cls((value,), _total)

    @classmethod
    def largest(cls, value: Num[Tensor, ""]) -> "Metric":
        """The largest value; -inf is that of nothing."""
        return cls((value,), _largest, is_extreme=True)

    @classmethod
    def smallest(cls, value: Num[Tensor, ""]) -> "Metric":
        """The smallest value; +inf is that of nothing."""
        return cls((-value,), _smallest, is_extreme=True)

    @classmethod
    def of_sums(cls, *sums: Num[Tensor, ""], finish: Finish) -> "Metric":
        """Numbers that are worked out of these sums once all parts are added up."""
        return cls((torch.stack([each.double() for each in sums]),), finish)


@dataclass(slots=True)
class MetricSums:
    """The metrics of one mini-batch on one rank, micro-batch by micro-batch.

    Every rank that takes part in ``reduce`` must have added the same names; one without tokens adds the metrics of
    empty inputs.
    """

    _parts: dict[str, list[Metric]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds the metrics of one micro-batch, or any others that are to be reduced along."""
        for name, metric in metrics.items():
            self._parts.setdefault(name, []).append(metric)

    def reduce(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """The numbers over all micro-batches and ranks, with one reduction of sums and one of extremes.

        A mean or an extreme of nothing is left out.
        """
        if not self._parts:
            return {}
        vectors = {name: _put_together(self._parts[name]) for name in sorted(self._parts)}
        summed = [name for name in vectors if not self._parts[name][0].is_extreme]
        extreme = [name for name in vectors if self._parts[name][0].is_extreme]
        nothing = next(iter(vectors.values()))[:0]
        sums, extremes = (torch.cat([nothing, *(vectors[name] for name in names)]) for names in (summed, extreme))
        if all_reduce is not None:
            sums, extremes = all_reduce(sums, "sum"), all_reduce(extremes, "max")
        numbers, named = iter(torch.cat([sums, extremes]).tolist()), {}
        for name in summed + extreme:
            named |= self._parts[name][0].finish(name, list(islice(numbers, len(vectors[name]))))
        return named


def sample_size_share(total: float, squares: float, count: float) -> float:
    """Effective sample size of weights with this sum and sum of squares, as a share of their number."""
    return total**2 / (count * squares) if squares > 0 else 0.0


def _put_together(parts: Sequence[Metric]) -> Float64[Tensor, " sum"]:
    """The values of all parts added up, or the largest of them, one after the other."""
    of_parts = [torch.stack(values) for values in zip(*(part.values for part in parts), strict=True)]
    combined = [values.amax(dim=0) if parts[0].is_extreme else values.sum(dim=0) for values in of_parts]
    return torch.cat([values.double().reshape(-1) for values in combined])


def _mean(name: str, sums: Sequence[float]) -> dict[str, float]:
    total, count = sums
    return {name: total / count} if count > 0 else {}


def _total(name: str, sums: Sequence[float]) -> dict[str, float]:
    return {name: sums[0]}


def _largest(name: str, extreme: Sequence[float]) -> dict[str, float]:
    return {} if math.isinf(extreme[0]) else {name: extreme[0]}


def _smallest(name: str, extreme: Sequence[float]) -> dict[str, float]:
    return {} if math.isinf(extreme[0]) else {name: -extreme[0]}


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
    clipped_positive, positive = (clipped & raised).count_nonzero(), raised.count_nonzero()
    clipped_any, deviation, tokens = clipped.count_nonzero(), torch.expm1(inputs.log_ratio), inputs.num_counted
    distance = deviation.abs().sum()
    sums = {
        "actor/clip_fraction": clipped_any,
        "actor/outside_trust_region": beyond.count_nonzero(),
        "actor/ratio_deviation": distance,
        "actor/tv": distance / 2,
        "actor/zero_gradient_share": tokens - gradient.count_nonzero(),
        "actor/corrective_share": (gradient * advantages > 0).count_nonzero(),
        "actor/clamped_share": (inputs.unclamped_log_ratio - inputs.log_ratio).count_nonzero(),
        "actor/kl_k1": -inputs.log_ratio.sum(),
        "actor/kl_k3": (deviation - inputs.log_ratio).sum(),
    }
    if inputs.entropy is not None:
        sums["actor/entropy"] = inputs.counted(inputs.entropy).sum()
    metrics = {name: Metric.mean(total, tokens) for name, total in sums.items()}
    by_sign = {
        "actor/clip_fraction_positive": Metric.mean(clipped_positive, positive),
        "actor/clip_fraction_negative": Metric.mean(
            clipped_any - clipped_positive, advantages.count_nonzero() - positive
        ),
    }
    smallest, largest = inputs.range_of(inputs.unclamped_log_ratio)
    distribution = {
        "actor/ratio": _quantiles(inputs),
        "actor/ess": Metric.of_sums(deviation.sum(), deviation.square().sum(), tokens, finish=_sample_size),
        "actor/log_ratio_max": Metric.largest(largest),
        "actor/log_ratio_min": Metric.smallest(smallest),
    }
    return metrics | by_sign | distribution


def _quantiles(inputs: PolicyLossInputs) -> Metric:
    """Of the ratio, from a histogram of the clamped log-ratio."""
    log_ratio = inputs.log_ratio.reshape(-1)
    bins = (log_ratio / BIN_SCALE).asinh_().div_(BIN_WIDTH).round_().nan_to_num_(nan=0.0).long().add_(HALF_BINS)
    counts = torch.zeros(2 * HALF_BINS + 1, dtype=log_ratio.dtype, device=log_ratio.device)
    counts.index_add_(0, bins, inputs.mask.reshape(-1).to(counts.dtype))
    return Metric((counts.double(),), _named_quantiles)


def _named_quantiles(name: str, counts: Sequence[float]) -> dict[str, float]:
    below = list(accumulate(counts))
    if not below[-1]:
        return {}
    bins = {share: bisect_left(below, share * below[-1]) - HALF_BINS for share in QUANTILES}
    return {
        f"{name}_q{100 * share:02.0f}": math.exp(BIN_SCALE * math.sinh(BIN_WIDTH * at)) for share, at in bins.items()
    }


def _sample_size(name: str, sums: Sequence[float]) -> dict[str, float]:
    """(sum r)^2 / (n sum r^2) from sums of r - 1 (Kong, 1992): 1 for equal ratios, 1 / n where one outweighs all others."""
    deviation, squares, count = sums
    if not count:
        return {}
    return {name: sample_size_share(count + deviation, count + 2 * deviation + squares, count)}
