"""A token's weight in the gradient against its ratio: means over bins of the ratio, by the sign of the advantage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.policy_loss import PolicyLossInputs

BINS = 30
_TAIL = 0.001
_NARROWEST = 1e-6
"""Half-width in nats of the range where all ratios are equal."""


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
