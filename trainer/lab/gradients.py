"""Gradients of losses on a frozen rollout: with respect to the log-probs, side by side, and against the ratio.

No model is needed: what reaches the log-probs is what a loss says of the tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import MetricSums
from cfpo_hybrid.algorithms.objective import LossDenominators, PolicyObjective, token_weights
from cfpo_hybrid.algorithms.policy_loss import MiniBatchTokens, PolicyLoss, PolicyLossInputs

BINS = 30
_TAIL = 0.001
_NARROWEST = 1e-6
"""Half-width in nats of the range where all ratios are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenReading:
    """One loss on the rollout.

    Args:
        loss: whose reading.
        metrics: those that a training step would log, ``actor/loss`` among them.
        gradient: of the loss with respect to the log-probs of the counted tokens, ``[token]`` fp64.
        weights: of the counted tokens, ``[token]`` fp64: d objective / d log pi over the token's share of the loss and
            its advantage. 1 is the plain policy gradient's, 0 no gradient, below 0 a push against the advantage; NaN
            where the advantage is 0.
    """

    loss: PolicyLoss
    metrics: Mapping[str, float]
    gradient: Tensor
    weights: Tensor


def missing_inputs(loss: PolicyLoss, inputs: PolicyLossInputs) -> list[str]:
    """What a loss needs and the rollout does not have."""
    present = {
        "rollout_log_probs": inputs.rollout_log_probs,
        "ref_log_probs": inputs.ref_log_probs,
        "entropy": inputs.entropy,
    }
    return sorted(need for need in loss.needs if present[need] is None)


def read_tokens(loss: PolicyLoss, inputs: PolicyLossInputs, aggregation: str) -> TokenReading:
    """A loss on the whole rollout as one mini-batch.

    Raises:
        BatchError: the loss needs an input that is absent; see :func:`missing_inputs`.
    """
    denominators = LossDenominators.of_mask(inputs.mask)
    tokens = MiniBatchTokens.of(inputs.old_log_probs, inputs.advantages, inputs.mask)
    seen = dataclasses.replace(inputs, statistics=loss.statistics(tokens))
    output = PolicyObjective(loss=loss, aggregation=aggregation)(seen, denominators)
    (gradient,) = torch.autograd.grad(output.loss, seen.log_probs)
    counted = gradient[inputs.mask]
    sums = MetricSums()
    sums.add(output.metrics)
    shares = (token_weights(inputs, aggregation, denominators) * inputs.advantages)[inputs.mask]
    weights = (-counted / shares).masked_fill(shares == 0, float("nan"))
    return TokenReading(loss=loss, metrics=sums.reduce(), gradient=counted, weights=weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Of gradients in the order of their losses.

    Example: gradients (3, 4) and (4, 3) have the norms 5 and 5 and the cosine 24 / 25.
    """

    norms: Tensor
    """``[loss]`` fp64."""
    cosines: Tensor
    """``[loss, loss]`` fp64; NaN beside a gradient of 0."""

    @classmethod
    def of(cls, gradients: Sequence[Tensor]) -> "Comparison":
        """The comparison of vectors ``[number]`` of one length; one pair at a time is held in fp64."""
        size = len(gradients)
        products = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            own = gradients[row].double()
            for column in range(row + 1):
                products[row, column] = products[column, row] = torch.dot(own, gradients[column].double())
        norms = products.diagonal().sqrt()
        return cls(norms=norms, cosines=products / torch.outer(norms, norms))


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightCurve:
    """Of one loss and one sign of the advantage, each ``[bin]``.

    Example: tokens with A > 0 of ratios 1.1 and 1.3 in the third bin under ``clip``: tokens 2, weight (1.1 + 0) / 2, zero
    share 0.5.
    """

    tokens: Tensor
    """Tokens in the bin, int64."""
    weight: Tensor
    """Mean weight, fp64; NaN for an empty bin."""
    zero_share: Tensor
    """Share of tokens without gradient, fp64; likewise."""


class RatioBins:
    """Bins of equal width in the log-ratio; tokens in the outermost thousandths fall into the bins at the ends.

    Args:
        inputs: whose counted tokens with an advantage are binned.
        count: of bins.
    """

    def __init__(self, inputs: PolicyLossInputs, count: int = BINS) -> None:
        log_ratio = inputs.log_ratio.detach()[inputs.mask].double()
        self._advantages = inputs.advantages[inputs.mask]
        ordered = log_ratio[self._advantages != 0].sort().values
        cut = int(_TAIL * (len(ordered) - 1))
        low, high = float(ordered[cut]), float(ordered[len(ordered) - 1 - cut])
        margin = _NARROWEST if high - low < _NARROWEST else 0.0
        edges = torch.linspace(low - margin, high + margin, count + 1, dtype=torch.float64)
        self.edges = edges.exp()
        """Ratios between the bins, ``[bin + 1]`` ascending."""
        self._count, self._bin = count, torch.bucketize(log_ratio, edges[1:-1])

    def curve(self, weights: Tensor, *, positive: bool) -> WeightCurve:
        """The curve of the tokens whose advantage has this sign.

        Args:
            weights: ``[token]`` fp64 of the counted tokens.
            positive: A > 0, or else A < 0.
        """
        chosen = self._advantages > 0 if positive else self._advantages < 0
        place, chosen_weights = self._bin[chosen], weights[chosen]
        tokens = torch.bincount(place, minlength=self._count)
        total = torch.bincount(place, weights=chosen_weights, minlength=self._count)
        zeros = torch.bincount(place, weights=(chosen_weights == 0).double(), minlength=self._count)
        return WeightCurve(tokens=tokens, weight=total / tokens, zero_share=zeros / tokens)
