"""KL-Cov: a KL penalty on the few tokens whose update costs the most entropy.

They are told by the covariance of log-prob and advantage, token by token:

    cov = (log pi_old - mean log pi_old) (A - mean A)        means over all tokens of the mini-batch

Cui et al., 2025 (arXiv 2505.22617): where it is high, the update makes a likely token likelier, and so costs entropy. The
paper has pi_theta, the policy in training; pi_old equals it at the first optimizer step of a rollout, and unlike it is
known for the whole mini-batch before the update. The published code takes means, ranks and random draws over each
micro-batch instead, and so changes with the way a mini-batch is cut.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import MiniBatchTokens, PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss


@dataclass(frozen=True, kw_only=True)
class KlCovConfig:
    """Knobs of ``kl_cov``, with verl's defaults."""

    ratio: float = 2e-4
    """Share of the mini-batch's tokens, those of the highest covariance, that get the penalty; one token at least."""
    kl_coef: float = 0.1
    """Weight of the penalty."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} must lie in (0, 1]: it is a share of the tokens")
        if not 0 <= self.kl_coef < math.inf:
            raise ValueError(f"kl_coef={self.kl_coef} must be 0 or a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class CovarianceMeans:
    """Means over the mini-batch.

    Example: tokens of log pi_old -1 and -3 with A = 1 and 0: ``CovarianceMeans(log_prob=-2.0, advantage=0.5)``, and
    both have the covariance 0.5.
    """

    log_prob: float
    advantage: float

    @classmethod
    def of(cls, tokens: MiniBatchTokens) -> "CovarianceMeans":
        """The means of a mini-batch; collective over its ranks."""
        return cls(log_prob=tokens.mean(tokens.old_log_probs), advantage=tokens.mean(tokens.advantages))

    def covariance(self, old_log_probs: PerToken, advantages: PerToken) -> Float64[Tensor, "*tokens"]:
        """Covariance of each token, bit for bit the same whatever else is in the tensors."""
        return (old_log_probs.detach().double() - self.log_prob) * (advantages.double() - self.advantage)


@dataclass(frozen=True, slots=True, kw_only=True)
class KlCovStatistics:
    """Of a mini-batch: the means, and the smallest covariance that is penalised."""

    means: CovarianceMeans
    threshold: float


def kl_cov_statistics(tokens: MiniBatchTokens, config: KlCovConfig) -> KlCovStatistics:
    """The threshold is the covariance of rank ``ratio`` x tokens; collective over the ranks of the mini-batch."""
    means = CovarianceMeans.of(tokens)
    chosen = max(1, int(config.ratio * tokens.count()))
    covariance = means.covariance(tokens.old_log_probs, tokens.advantages)
    return KlCovStatistics(means=means, threshold=tokens.nth_largest(covariance, chosen))


@register_policy_loss("kl_cov", config=KlCovConfig, statistics=kl_cov_statistics)
def kl_cov(inputs: PolicyLossInputs, config: KlCovConfig) -> PerToken:
    """The loss -r A, plus kl_coef |log r| on the tokens of the highest covariance of log-prob and advantage.

    Cui et al., 2025 (arXiv 2505.22617), KL-Cov; |log r| is the KL estimate of the authors' code. The
    selection is global: rank and means are over the whole mini-batch, with the policy that sampled.
    A covariance of 0 or less is never penalised.
    """
    statistics: KlCovStatistics = inputs.statistics
    covariance = statistics.means.covariance(inputs.old_log_probs, inputs.advantages)
    penalised = (covariance >= statistics.threshold) & (covariance > 0)
    penalty = torch.where(penalised, config.kl_coef * inputs.log_ratio.abs(), 0.0)
    return penalty - inputs.ratio * inputs.advantages
