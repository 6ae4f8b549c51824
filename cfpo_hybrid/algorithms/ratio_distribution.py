"""How the ratio is distributed over a mini-batch: quantiles and effective sample size, from sums that add up.

Neither can be averaged over micro-batches and ranks, so each part gives what can be summed: counts of a histogram, and
moments. The bins of the histogram are those of asinh(log r / 0.001), 0.02 wide: around r = 1 they are 2e-5 nats wide,
beyond they grow with log r, and a quantile is the middle of its bin, within 1 % of its log r. One bin lies around 0, so
that on-policy every quantile is exactly 1.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from cfpo_hybrid.algorithms.metrics import Metric, Reduction
from cfpo_hybrid.algorithms.policy_loss.inputs import LOG_RATIO_LIMIT, PolicyLossInputs

SHARES = (0.01, 0.05, 0.25, 0.50, 0.75, 0.95, 0.99)
"""Of the tokens, at or below each quantile."""
SCALE, WIDTH = 1e-3, 0.02
HALF = round(math.asinh(LOG_RATIO_LIMIT / SCALE) / WIDTH)
"""Bins on each side of the one around 0; clamped log-ratios fall into the last ones."""


def ratio_quantiles(inputs: PolicyLossInputs) -> Metric:
    """``actor/ratio_q01`` ... ``_q99``, from a histogram of the clamped log-ratio."""
    log_ratio = inputs.log_ratio.reshape(-1)
    bins = (log_ratio / SCALE).asinh_().div_(WIDTH).round_().nan_to_num_(nan=0.0).long().add_(HALF)
    counts = torch.zeros(2 * HALF + 1, dtype=log_ratio.dtype, device=log_ratio.device)
    counts.index_add_(0, bins, inputs.mask.reshape(-1).to(counts.dtype))
    return Metric(Reduction.PARTS, counts, finish=_quantiles)


def effective_sample_size(deviation: Tensor, tokens: Tensor) -> Metric:
    """``actor/ess``: (sum r)^2 / (n sum r^2), the share of its tokens that a mini-batch is worth (Kong, 1992).

    1 where all ratios are equal, 1 / n where one token outweighs all others.

    Args:
        deviation: r - 1, 0 outside the mask.
        tokens: n, those inside the mask.
    """
    return Metric.of_sums(deviation.sum(), deviation.square().sum(), tokens, finish=_ratio_ess)


def share_of_sample_size(total: float, squares: float, count: float) -> float:
    """Effective sample size of weights with this sum and sum of squares, as a share of their number."""
    return total**2 / (count * squares) if squares > 0 else 0.0


def _quantiles(counts: Sequence[float]) -> dict[str, float]:
    below = list(accumulate(counts))
    if not below[-1]:
        return {}
    places = {share: bisect_left(below, share * below[-1]) - HALF for share in SHARES}
    return {f"actor/ratio_q{100 * share:02.0f}": _ratio_of(place) for share, place in places.items()}


def _ratio_of(place: int) -> float:
    return math.exp(SCALE * math.sinh(WIDTH * place))


def _ratio_ess(sums: Sequence[float]) -> dict[str, float]:
    deviation, squares, count = sums
    if not count:
        return {}
    return {"actor/ess": share_of_sample_size(count + deviation, count + 2 * deviation + squares, count)}
