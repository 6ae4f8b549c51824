"""What a policy loss may know of the whole mini-batch before its update: old log-probs and advantages of every token.

A loss sees one micro-batch at a time. One that compares a token with the mini-batch (its covariance against the mean,
its rank) would change with the way the mini-batch is cut, if it took its statistics from what it sees. So such a loss
is registered with ``statistics``, a function of these tokens that is called once a mini-batch, on all ranks that hold
a part of it; every micro-batch then finds the result in ``inputs.statistics``.

The log-probs are those of the policy that sampled, which are known before the update. Those of the policy in training
are not: they would cost a forward pass more for each optimizer step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]
"""A vector of each rank that holds other tokens, all of the same length: ``[value]`` -> ``[rank, value]``."""


def alone(vector: Tensor) -> Tensor:
    """The gather of a single process."""
    return vector.unsqueeze(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatchTokens:
    """The counted tokens of a mini-batch that one rank holds, maybe none; methods answer for those of all ranks.

    Every method is collective: all ranks call the same ones in the same order.

    Example: ``tokens.mean(tokens.advantages)`` is the mean advantage over all tokens of the mini-batch.
    """

    old_log_probs: Tensor
    """Log pi_old in nats, ``[token]`` fp64."""
    advantages: Tensor
    """``[token]`` fp64."""
    gather: Gather = field(default=alone)

    @classmethod
    def of(cls, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, gather: Gather = alone) -> "MiniBatchTokens":
        """The counted tokens of padded or packed tensors; advantages also one a row, ``[batch]``."""
        if advantages.dim() < mask.dim():
            advantages = advantages.unsqueeze(1).expand(mask.shape)
        counted = mask != 0
        return cls(
            old_log_probs=old_log_probs[counted].detach().double(),
            advantages=advantages[counted].double(),
            gather=gather,
        )

    def count(self, chosen: Tensor | None = None) -> int:
        """Tokens of the mini-batch, or those ``chosen`` by a ``[token]`` mask."""
        own = torch.ones_like(self.advantages) if chosen is None else chosen.double()
        return int(self.gather(own.sum().unsqueeze(0)).sum())

    def mean(self, values: Tensor) -> float:
        """Mean of ``values``, ``[token]``, over the mini-batch; 0 for a mini-batch without tokens."""
        sums = self.gather(torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])).sum(dim=0)
        total, count = sums.tolist()
        return total / count if count else 0.0

    def nth_largest(self, values: Tensor, n: int) -> float:
        """The n-th largest of ``values``, ``[token]``, over the mini-batch; -inf when there are fewer."""
        own = values.double().topk(min(n, len(values))).values
        candidates = self.gather(torch.nn.functional.pad(own, (0, n - len(own)), value=float("-inf")))
        return float(candidates.flatten().topk(n).values[-1])
