"""The mismatch between the engine that samples and the one that trains: how large it is, and what is done about it.

    log pi_theta - log pi_rollout = (log pi_old - log pi_rollout - log Z) + log Z + (log pi_theta - log pi_old)
            total                 =               numeric             + transform  +        drift

Numeric is what two engines make of the same weights. The transform is that of sampling: top-p and top-k keep tokens of the
probability Z, over which the rollout's log-probs are renormalised (without truncation Z is 1; a temperature is no part of
it, since all log-probs are taken at the rollout's). Drift is what optimizer steps have changed since. Where pi_old is taken
from the rollout, numeric is 0 and drift holds both. Of each, ``mismatch/<part>_mean`` is the mean over tokens in nats
(means add up) and ``mismatch/<part>_rms`` the root mean square. ``rollout/log_prob_diff_mean`` and ``_max`` are those of
abs(numeric).

The correction: tokens are sampled from pi_rollout, while losses and advantages speak of pi_old. With d = log pi_old - log
pi_rollout, clamped to +-20 nats, a token's policy loss is multiplied by a weight that carries no gradient:

| level | w | |
|---|---|---|
| ``token`` | exp(d) | biased for a sequence, of low variance |
| ``sequence`` | exp(sum of d over the response) | unbiased, of a variance that grows with the length |

| mode | weight | |
|---|---|---|
| ``off`` | 1 | |
| ``truncate`` | min(w, upper) | TIS |
| ``mask`` | w where lower <= w <= upper, else 0 | of tokens IcePop, of sequences MIS |

TIS: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025. IcePop: arXiv 2510.18855.
MIS: Liu et al., "When speed kills stability: demystifying RL collapse from the training-inference mismatch", 2025.

Besides, with either mode or none, a whole response is rejected (weight 0) when the geometric mean of its tokens' ratios,
exp(mean of d), lies outside ``reject_lower`` to ``reject_upper``; unlike a product it does not depend on the length.

Where top-p or top-k truncate sampling, w holds the factor Z: the estimate is that of the full distribution over the kept
tokens; those that were never sampled have no part in it.

Weights multiply the policy loss only, not the KL penalty nor the entropy. What is masked or rejected weighs 0 and still
counts in the denominators: the estimate stays that of the importance-weighted sum, the step of the other tokens does not
depend on how many were masked, and the denominators are known before the first micro-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, sample_size_share
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PerToken, PolicyLossInputs, TokenMask

MODES = ("off", "truncate", "mask")
LEVELS = ("token", "sequence")
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, SplitMix64's step."""


@torch.no_grad()
def mismatch_metrics(inputs: PolicyLossInputs) -> dict[str, Metric]:
    """The parts of the mismatch in one micro-batch; nothing when the rollout's log-probs are not given."""
    if inputs.rollout_log_probs is None:
        return {}
    difference, drift = inputs.rollout_log_ratio, inputs.unclamped_log_ratio
    parts = {"numeric": difference, "drift": drift, "total": difference + drift}
    if inputs.kept_log_mass is not None:
        transform = inputs.counted(inputs.kept_log_mass)
        parts |= {"numeric": difference - transform, "transform": transform}
    size = parts["numeric"].abs()
    sums = [total for part in parts.values() for total in (part.sum(), part.square().sum())]
    return {
        "mismatch": Metric.of_sums(inputs.num_counted, *sums, finish=partial(_means_and_sizes, tuple(parts))),
        "rollout/log_prob_diff_mean": Metric.mean(size.sum(), inputs.num_counted),
        "rollout/log_prob_diff_max": Metric.largest(inputs.range_of(size)[1]),
    }


@dataclass(frozen=True, kw_only=True)
class RolloutCorrection:
    """How tokens are weighted by pi_old / pi_rollout.

    Example: ``RolloutCorrection(mode="truncate")`` is TIS with weights of at most 2.
    """

    mode: str = "off"
    """"off", "truncate" (weights of at most upper) or "mask" (weight 0 outside lower to upper)."""
    level: str = "token"
    """Ratio of each "token", or of the whole response: "sequence"."""
    lower: float = 0.0
    """Smallest ratio that "mask" keeps; IcePop has 0.5."""
    upper: float = 2.0
    """Largest weight of "truncate", largest ratio that "mask" keeps; IcePop has 5."""
    reject_lower: float | None = None
    """Responses whose tokens have a geometric mean ratio below this get no gradient; whatever the mode."""
    reject_upper: float | None = None
    """The same above this, e.g. 1.01."""

    @property
    def is_active(self) -> bool:
        """Whether there is anything to correct with."""
        return self.mode != "off" or self.rejects

    @property
    def rejects(self) -> bool:
        """Whether whole responses may be rejected."""
        return self.reject_lower is not None or self.reject_upper is not None

    def problems(self) -> list[tuple[str, str]]:
        """The fields that make no sense, each with a message that begins with it and says what to do about it."""
        found: list[tuple[str, str]] = []
        for name, value, known in (("mode", self.mode, MODES), ("level", self.level, LEVELS)):
            if value not in known:
                found.append((name, f"{name}={value!r} is unknown; use one of {', '.join(known)}"))
        if self.mode == "truncate" and self.lower != 0:
            useless = f"lower={self.lower} does nothing with mode=truncate; use mode=mask or leave it out"
            found.append(("lower", useless))
        if self.mode == "mask" and not self.lower < self.upper:
            found.append(("lower", f"lower={self.lower} must be below upper={self.upper}"))
        low, high = self._rejection_bounds
        if not low < high:
            found.append(("reject_lower", f"reject_lower={low} must be below reject_upper={high}; ratios lie around 1"))
        return found

    def weigh(self, inputs: PolicyLossInputs) -> tuple[PerToken, dict[str, Metric]]:
        """The weight of each token, detached, and what it amounts to.

        Weights outside the mask may be anything finite.

        Raises:
            BatchError: the inputs lack the rollout's log-probs.
        """
        log_ratio = _clamped(inputs.rollout_log_ratio)
        mean = inputs.sequence_mean(log_ratio) if self.rejects or self.level == "sequence" else log_ratio
        if self.level == "sequence":
            log_ratio = _clamped(mean * inputs.spread(inputs.sequence_token_counts))
        ratio = log_ratio.exp()
        weights, metrics = self._bounded(ratio, inputs)
        if self.rejects:
            low, high = self._rejection_bounds
            rejected = inputs.mask & ((mean.exp() < low) | (mean.exp() > high))
            weights = torch.where(rejected, 0.0, weights)
            metrics["correction/rejected_share"] = _share_of_responses(rejected, inputs)
        counted = inputs.counted(weights)
        sums = counted.sum(), counted.square().sum(), inputs.num_counted
        metrics["correction"] = Metric.of_sums(*sums, finish=_weight_numbers)
        return weights, metrics

    @property
    def _rejection_bounds(self) -> tuple[float, float]:
        low, high = self.reject_lower, self.reject_upper
        return 0.0 if low is None else low, float("inf") if high is None else high

    def _bounded(self, ratio: PerToken, inputs: PolicyLossInputs) -> tuple[PerToken, dict[str, Metric]]:
        """The weights of the mode, and the share of tokens whose ratio was out of bounds."""
        if self.mode == "off":
            return torch.ones_like(ratio), {}
        outside = inputs.mask & ((ratio > self.upper) | (ratio < self.lower))
        share = Metric.mean(outside.count_nonzero(), inputs.num_counted)
        if self.mode == "truncate":
            return ratio.clamp(max=self.upper), {"correction/truncated_share": share}
        return torch.where(outside, 0.0, ratio), {"correction/masked_share": share}


def log_prob_noise(seeds: Int64[Tensor, " batch"], width: int, sigma: float) -> Float32[Tensor, "batch response"]:
    """Gaussian noise in nats with mean 0 and standard deviation ``sigma``: a mismatch to order, of a known size.

    A function of a row's seed and the position alone, so that it depends neither on the layout nor on the padding.
    Uniform numbers are those of SplitMix64 (Steele, Lea and Flood 2014, figure 15), made normal by Box and Muller's method.
    A ratio against noisy log-probs has the mean exp(sigma^2 / 2) where it would be 1.

    Args:
        seeds: from (run seed, step, prompt, sample).
        width: response positions.
        sigma: in nats.
    """
    counters = np.arange(1, 2 * width + 1, dtype=np.uint64).reshape(width, 2)
    states = seeds.numpy(force=True).astype(np.uint64)[:, None, None] + counters * GOLDEN
    uniform = ((_mix(states) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal = np.sqrt(-2 * np.log(uniform[..., 0])) * np.cos(2 * math.pi * uniform[..., 1])
    return torch.from_numpy((sigma * normal).astype(np.float32))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _clamped(log_ratio: PerToken) -> PerToken:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _means_and_sizes(parts: Sequence[str], name: str, sums: Sequence[float]) -> dict[str, float]:
    count, means, squares = sums[0], sums[1::2], sums[2::2]
    if not count:
        return {}
    named = {f"{name}/{part}_mean": total / count for part, total in zip(parts, means, strict=True)}
    sizes = {f"{name}/{part}_rms": math.sqrt(total / count) for part, total in zip(parts, squares, strict=True)}
    return named | sizes


def _share_of_responses(chosen: TokenMask, inputs: PolicyLossInputs) -> Metric:
    """Of the responses that have tokens; ``chosen`` is the same for all tokens of a response."""
    of_response = inputs.counted(1 / inputs.spread(inputs.sequence_token_counts).clamp(min=1))
    return Metric.mean(torch.where(chosen, of_response, 0.0).sum(), of_response.sum())


def _weight_numbers(name: str, sums: Sequence[float]) -> dict[str, float]:
    total, squares, count = sums
    if not count:
        return {}
    return {f"{name}/weight_mean": total / count, f"{name}/ess": sample_size_share(total, squares, count)}
