"""Losses that spare the entropy: KL-Cov and Clip-Cov treat a few tokens apart, those whose update costs the most of it.

They are told by the covariance of log-prob and advantage, token by token:

    cov = (log pi_old - mean log pi_old) (A - mean A)        means over all tokens of the mini-batch

Cui et al., 2025 (arXiv 2505.22617): where it is high, the update makes a likely token likelier, and so costs entropy. The
paper has pi_theta, the policy in training; pi_old equals it at the first optimizer step of a rollout, and unlike it is
known for the whole mini-batch before the update. The published code takes means, ranks and random draws over each
micro-batch instead, and so changes with the way a mini-batch is cut.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.clip import ClipConfig, clip
from cfpo_hybrid.algorithms.policy_loss.inputs import MiniBatchTokens, PerToken, PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.registry import register_policy_loss

MULTIPLIER = 0x9E3779B1
"""2^32 over the golden ratio, the multiplier of Fibonacci hashing (Knuth, volume 3, section 6.4)."""


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
class KlCovStatistics:
    """Of a mini-batch: the means, and the smallest covariance that is penalised."""

    means: CovarianceMeans
    threshold: float


def kl_cov_statistics(tokens: MiniBatchTokens, config: KlCovConfig) -> KlCovStatistics:
    """The threshold is the covariance of rank ``ratio`` x tokens; collective over the ranks of the mini-batch."""
    means = CovarianceMeans.of(tokens)
    covariance = means.covariance(tokens.old_log_probs, tokens.advantages)
    return KlCovStatistics(means=means, threshold=tokens.nth_largest(covariance, chosen_of(config.ratio, tokens)))


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


@dataclass(frozen=True, kw_only=True)
class ClipCovConfig(ClipConfig):
    """Knobs of ``clip_cov``: those of ``clip``, and which tokens are left out."""

    ratio: float = 2e-4
    """Share of the mini-batch's tokens that are left out, as far as the band holds so many; one token at least."""
    covariance_low: float = 1.0
    """Tokens of a covariance above this ..."""
    covariance_high: float = 5.0
    """... and below this may be left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} must lie in (0, 1]: it is a share of the tokens; 'clip' drops none")
        if not 0 <= self.covariance_low < self.covariance_high:
            raise ValueError(
                f"covariance_low={self.covariance_low} must be 0 or more, and below "
                f"covariance_high={self.covariance_high}"
            )

    def in_band(self, covariance: Float64[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
        """Where the covariance lies between the bounds."""
        return (covariance > self.covariance_low) & (covariance < self.covariance_high)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCovStatistics:
    """Of a mini-batch: the means, and the largest draw of a token that is left out; infinite for the whole band."""

    means: CovarianceMeans
    largest_draw: float


def clip_cov_statistics(tokens: MiniBatchTokens, config: ClipCovConfig) -> ClipCovStatistics:
    """The draw of rank ``ratio`` x tokens in the band; collective over the ranks of the mini-batch."""
    means = CovarianceMeans.of(tokens)
    in_band = config.in_band(means.covariance(tokens.old_log_probs, tokens.advantages))
    draws = token_draw(tokens.old_log_probs[in_band], tokens.advantages[in_band])
    return ClipCovStatistics(means=means, largest_draw=-tokens.nth_largest(-draws, chosen_of(config.ratio, tokens)))


@register_policy_loss(
    "clip_cov",
    config=ClipCovConfig,
    trust_region=lambda config: config.trust_region,
    statistics=clip_cov_statistics,
    drops_tokens=True,
)
def clip_cov(inputs: PolicyLossInputs, config: ClipCovConfig) -> PerToken:
    """The loss of ``clip``, and 0 on a random few tokens in a band of the covariance of log-prob and advantage.

    Cui et al., 2025 (arXiv 2505.22617), Clip-Cov; share and band are verl's, and so is the least number, one token. Of
    the band's tokens those are left out whose draw by a hash of the token itself (``token_draw``) is smallest: the same
    ones however the mini-batch is cut. The selection is global, and made before the update. A token that the clip
    already holds is not left out as well: it has no gradient either way. The authors' code looks for other tokens in its
    place, which would need the policy in training on the whole mini-batch; at the first optimizer step of a rollout no
    token is clipped, and the selection has the same distribution.
    """
    statistics: ClipCovStatistics = inputs.statistics
    in_band = config.in_band(statistics.means.covariance(inputs.old_log_probs, inputs.advantages))
    drawn = token_draw(inputs.old_log_probs, inputs.advantages) <= statistics.largest_draw
    bound = torch.where(
        inputs.advantages > 0, inputs.ratio - (1 + config.clip_high), 1 - config.clip_low - inputs.ratio
    )
    return torch.where(in_band & drawn & (bound <= 0), 0.0, clip(inputs, config))


def chosen_of(ratio: float, tokens: MiniBatchTokens) -> int:
    """How many tokens a share of the mini-batch's is: rounded down, one at least; collective over its ranks.

    The share is taken as it is written: 0.29 of 100 tokens are 29, where the product of the floats is below 29.
    """
    return max(1, math.floor(Fraction(str(ratio)) * tokens.count()))


def token_draw(
    old_log_probs: Float[Tensor, "*tokens"], advantages: Float[Tensor, "*tokens"]
) -> Float64[Tensor, "*tokens"]:
    """A number in [0, 1) for each token that looks random and is a function of the token alone.

    The bits of the old log-prob and the advantage are hashed: the draw is the same on every rank, in every micro-batch
    and in each pass over the rollout. Old log-probs that another layout recomputes differ in their last bits, and draw
    other tokens. Tokens that are equal in both are drawn together.
    """
    mixed = torch.zeros(old_log_probs.shape, dtype=torch.int64, device=old_log_probs.device)
    for values in (old_log_probs, advantages):
        bits = values.detach().float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        mixed = ((mixed ^ bits) * MULTIPLIER) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * MULTIPLIER) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)).double() / 2**32
