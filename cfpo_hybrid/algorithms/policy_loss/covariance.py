"""The covariance of log-prob and advantage, token by token: what the losses against entropy collapse select by.

    cov = (log pi_old - mean log pi_old) (A - mean A)        means over all tokens of the mini-batch

Cui et al., 2025 (arXiv 2505.22617): where it is high, the update makes a likely token likelier, and so
costs entropy. The paper has pi_theta, the policy in training; pi_old equals it at the first optimizer step of a
rollout, and unlike it is known for the whole mini-batch before the update. The published code takes means, ranks and
random draws over each micro-batch instead, and so changes with the way a mini-batch is cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss.inputs import PolicyLossInputs
from cfpo_hybrid.algorithms.policy_loss.mini_batch import MiniBatchTokens

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

    def covariance(self, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Covariance of each token in fp64, bit for bit the same whatever else is in the tensors."""
        return (old_log_probs.detach().double() - self.log_prob) * (advantages.double() - self.advantage)


def token_draw(inputs: PolicyLossInputs) -> Tensor:
    """A number in [0, 1) for each token that looks random and is a function of the token alone, fp64.

    The bits of the old log-prob and the advantage are hashed: the draw is the same on every rank, in every micro-batch
    and in each pass over the rollout. Old log-probs that another layout recomputes differ in their last bits, and draw
    other tokens.
    """
    mixed = torch.zeros(inputs.log_probs.shape, dtype=torch.int64, device=inputs.log_probs.device)
    for values in (inputs.old_log_probs, inputs.advantages):
        bits = values.detach().float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        mixed = ((mixed ^ bits) * MULTIPLIER) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * MULTIPLIER) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)).double() / 2**32
