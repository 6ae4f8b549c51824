"""The watch over the passes of a rollout: after each optimizer step, whether another one may follow."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from workers.config import WatchConfig
from workers.messages import Trip, UpdateRecord

KL, ESS = "actor/kl_k3", "actor/ess"
MUST_BE_FINITE = ("actor/grad_norm", "actor/loss", KL, "actor/entropy")
"""Metrics of an optimizer step whose being infinite or NaN is a trip."""

NOT_MEASURED = -math.inf
"""Stands for a metric that a rank lacks: only the last pipeline stage has them."""

Agree = Callable[[Sequence[float]], list[float]]


def largest_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each value over all ranks; collective over the world."""
    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


class PassWatch:
    """Compares optimizer steps with the declared limits. All ranks come to the same verdict, or they would wait for each
    other for ever.

    Args:
        limits: of the run.
        agree: gives every rank the largest of what any rank measured.
    """

    def __init__(self, limits: WatchConfig, agree: Agree = largest_over_ranks) -> None:
        self._limits, self._agree = limits, agree
        self._trips: dict[str, Trip] = {}

    @property
    def trips(self) -> list[Trip]:
        """Limits crossed so far, each at its first time."""
        return list(self._trips.values())

    def allows_more(self, update: UpdateRecord) -> bool:
        """Whether the rollout's next optimizer step may follow this one; collective over the world."""
        crossed = list(self._crossed(update))
        for trip in crossed:
            self._trips.setdefault(trip.limit, trip)
        return all(trip.action == "warn" for trip in crossed)

    def _crossed(self, update: UpdateRecord) -> Iterator[Trip]:
        limits, metrics = self._limits, update.metrics
        broken = any(not math.isfinite(metrics.get(name, 0.0)) for name in MUST_BE_FINITE)
        # The smallest effective sample size is the largest of its negatives.
        kl, minus_ess, non_finite = self._agree([_finite(metrics, KL), _finite(metrics, ESS, sign=-1.0), float(broken)])
        place = f"at iteration {update.iteration}, mini-batch {update.mini_batch}"
        if limits.kl is not None and kl > limits.kl:
            finding = f"{KL} is {kl:.4g}, above {limits.kl:g}, {place}"
            yield Trip(limit="watch.kl", finding=finding, action=limits.kl_action)
        if limits.ess is not None and -minus_ess < limits.ess:
            finding = f"{ESS} is {-minus_ess:.4g}, below {limits.ess:g}, {place}"
            yield Trip(limit="watch.ess", finding=finding, action=limits.ess_action)
        if non_finite > 0:
            finding = f"one of {', '.join(MUST_BE_FINITE)} is not finite, {place}"
            yield Trip(limit="watch.non_finite", finding=finding, action=limits.non_finite_action)


def _finite(metrics: dict[str, float], name: str, sign: float = 1.0) -> float:
    value = sign * metrics.get(name, math.nan)
    return value if math.isfinite(value) else NOT_MEASURED
