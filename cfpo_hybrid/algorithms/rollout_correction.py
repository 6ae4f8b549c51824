"""Correction of the mismatch between the engine that samples and the one that trains: importance weights, rejection.

Tokens are sampled from pi_rollout, while losses and advantages speak of pi_old. With d = log pi_old - log pi_rollout,
clamped to +-20 nats, a token's policy loss is multiplied by a weight that carries no gradient:

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

Where top-p or top-k truncate sampling, pi_rollout is renormalised over the tokens that they keep, of the mass Z, and w
holds the factor Z: the estimate is that of the full distribution over the kept tokens; those that were never sampled
have no part in it.

Weights multiply the policy loss only, not the KL penalty nor the entropy. What is masked or rejected weighs 0 and still
counts in the denominators: the estimate stays that of the importance-weighted sum, the step of the other tokens does not
depend on how many were masked, and the denominators are known before the first micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, Reduction
from cfpo_hybrid.algorithms.mismatch import rollout_log_ratio
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PolicyLossInputs
from cfpo_hybrid.algorithms.ratio_distribution import share_of_sample_size
from cfpo_hybrid.errors import BatchError

MODES = ("off", "truncate", "mask")
LEVELS = ("token", "sequence")
LIMIT = LOG_RATIO_LIMIT


@dataclass(frozen=True, kw_only=True)
class RolloutCorrection:
    """How tokens are weighted by pi_old / pi_rollout; a section of the configuration, ``algorithm.rollout_correction``.

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
        """The keys that make no sense, each with what to do about it."""
        section, found = "algorithm.rollout_correction", []
        for key, value, known in (("mode", self.mode, MODES), ("level", self.level, LEVELS)):
            if value not in known:
                found.append((key, f"{section}.{key}={value!r} is unknown; use one of {', '.join(known)}"))
        if self.mode == "truncate" and self.lower != 0:
            found.append(
                (
                    "lower",
                    f"{section}.lower={self.lower} does nothing with mode=truncate; use mode=mask or leave it out",
                )
            )
        if self.mode == "mask" and not self.lower < self.upper:
            found.append(("lower", f"{section}.lower={self.lower} must be below upper={self.upper}"))
        low, high = self._rejection_bounds
        if not low < high:
            found.append(
                ("reject_lower", f"{section}.reject_lower={low} must be below reject_upper={high}; ratios lie around 1")
            )
        return found

    def weigh(self, inputs: PolicyLossInputs) -> tuple[Tensor, dict[str, Metric]]:
        """The weight of each token, detached and shaped like ``inputs.log_probs``, and what it amounts to.

        Weights outside the mask may be anything finite.

        Raises:
            BatchError: the inputs lack the rollout's log-probs.
        """
        if inputs.rollout_log_probs is None:
            raise BatchError("algorithm.rollout_correction needs rollout_log_probs, which the inputs lack")
        log_ratio = rollout_log_ratio(inputs).clamp(-LIMIT, LIMIT)
        mean = inputs.sequence_mean(log_ratio) if self.rejects or self.level == "sequence" else log_ratio
        if self.level == "sequence":
            log_ratio = (mean * inputs.spread(inputs.sequence_token_counts)).clamp(-LIMIT, LIMIT)
        ratio = log_ratio.exp()
        weights, metrics = self._bounded(ratio, inputs)
        if self.rejects:
            low, high = self._rejection_bounds
            rejected = inputs.mask & ((mean.exp() < low) | (mean.exp() > high))
            weights = torch.where(rejected, 0.0, weights)
            metrics["correction/rejected_share"] = _share_of_responses(rejected, inputs)
        counted = inputs.counted(weights)
        sums = counted.sum(), counted.square().sum(), inputs.num_counted
        metrics["correction/weights"] = Metric.of_sums(*sums, finish=_weights)
        return weights, metrics

    @property
    def _rejection_bounds(self) -> tuple[float, float]:
        low, high = self.reject_lower, self.reject_upper
        return 0.0 if low is None else low, float("inf") if high is None else high

    def _bounded(self, ratio: Tensor, inputs: PolicyLossInputs) -> tuple[Tensor, dict[str, Metric]]:
        """The weights of the mode, and the share of tokens whose ratio was out of bounds."""
        if self.mode == "off":
            return torch.ones_like(ratio), {}
        outside = inputs.mask & ((ratio > self.upper) | (ratio < self.lower))
        share = Metric(Reduction.MEAN, outside.count_nonzero(), inputs.num_counted)
        if self.mode == "truncate":
            return ratio.clamp(max=self.upper), {"correction/truncated_share": share}
        return torch.where(outside, 0.0, ratio), {"correction/masked_share": share}


def _share_of_responses(chosen: Tensor, inputs: PolicyLossInputs) -> Metric:
    """Of the responses that have tokens; ``chosen`` is the same for all tokens of a response."""
    of_response = inputs.counted(1 / inputs.spread(inputs.sequence_token_counts).clamp(min=1))
    return Metric(Reduction.MEAN, torch.where(chosen, of_response, 0.0).sum(), of_response.sum())


def _weights(sums: Sequence[float]) -> dict[str, float]:
    total, squares, count = sums
    if not count:
        return {}
    return {"correction/weight_mean": total / count, "correction/ess": share_of_sample_size(total, squares, count)}
