"""Metrics as (sum, count) pairs and extremes: gathered as tensors, reduced once an optimizer step.

A mean over micro-batches of different sizes is wrong; a sum of sums over a sum of counts is right for every split.
Nothing here waits for the device before ``reduce``, which ends in one copy to the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import torch
from torch import Tensor

AllReduce = Callable[[Tensor, Literal["sum", "max"]], Tensor]
"""Reduces a vector over the ranks that hold different tokens, and returns it."""

Finish = Callable[[Sequence[float]], dict[str, float]]
"""From sums over all parts to the named numbers that they stand for; no number for sums over nothing."""


class Reduction(Enum):
    """How the parts of a metric are put together."""

    MEAN = "mean"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PARTS = "parts"


@dataclass(frozen=True, slots=True)
class Metric:
    """One micro-batch's part of a metric: detached scalars on the device, or for PARTS a vector.

    Example: 3 of 8 tokens clipped: ``Metric(Reduction.MEAN, tensor(3.0), tensor(8.0))``.
    """

    reduction: Reduction
    value: Tensor
    """The sum for MEAN and SUM, the extreme for MAX and MIN (-inf or +inf for an extreme of nothing), sums for PARTS."""
    count: Tensor | None = None
    """For MEAN, what the sum is divided by."""
    finish: Finish | None = None
    """For PARTS, what the sums over all parts mean: a ratio of sums, a quantile of counts."""

    @classmethod
    def of_sums(cls, *sums: Tensor, finish: Finish) -> "Metric":
        """Numbers that are worked out of these scalar sums once all parts are added up."""
        return cls(Reduction.PARTS, torch.stack([each.double() for each in sums]), finish=finish)


@dataclass(slots=True)
class MetricSums:
    """The metrics of one mini-batch on one rank, micro-batch by micro-batch.

    Every rank that takes part in ``reduce`` must have added the same names; one without tokens adds the metrics of
    empty inputs.
    """

    _parts: dict[str, list[Metric]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds the metrics of one micro-batch, or any others that are to be reduced along."""
        for name, metric in metrics.items():
            self._parts.setdefault(name, []).append(metric)

    def reduce(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """The numbers over all micro-batches and ranks, with one reduction of sums and one of extremes.

        A mean or an extreme of nothing is left out.
        """
        if not self._parts:
            return {}
        summed, vectors = self._names(Reduction.MEAN, Reduction.SUM), self._names(Reduction.PARTS)
        extreme = self._names(Reduction.MAX, Reduction.MIN)
        device = next(iter(self._parts.values()))[0].value.device
        values = [torch.stack([part.value for part in self._parts[name]]).sum() for name in summed]
        counts = [torch.stack([_count(part) for part in self._parts[name]]).sum() for name in summed]
        stacked = [torch.stack([part.value for part in self._parts[name]]).double().sum(dim=0) for name in vectors]
        largest = [torch.stack([part.value * _sign(part) for part in self._parts[name]]).amax() for name in extreme]
        sums, extremes = torch.cat([_vector(values + counts, device), *stacked]), _vector(largest, device)
        if all_reduce is not None:
            sums, extremes = all_reduce(sums, "sum"), all_reduce(extremes, "max")
        numbers = torch.cat([sums, extremes]).tolist()
        of_extremes = numbers[len(numbers) - len(extreme) :]
        return (
            self._named(summed, numbers)
            | self._finished(vectors, numbers[2 * len(summed) :])
            | self._named_extremes(extreme, of_extremes)
        )

    def _names(self, *reductions: Reduction) -> list[str]:
        return sorted(name for name, parts in self._parts.items() if parts[0].reduction in reductions)

    def _named(self, names: list[str], numbers: list[float]) -> dict[str, float]:
        named = {}
        for name, total, count in zip(names, numbers, numbers[len(names) :], strict=False):
            if self._parts[name][0].reduction is Reduction.SUM:
                named[name] = total
            elif count > 0:
                named[name] = total / count
        return named

    def _finished(self, names: list[str], numbers: list[float]) -> dict[str, float]:
        named, first = {}, 0
        for name in names:
            part = self._parts[name][0]
            assert part.finish is not None, f"{name} has sums, and nothing that says what they mean"
            named |= part.finish(numbers[first : first + len(part.value)])
            first += len(part.value)
        return named

    def _named_extremes(self, names: list[str], numbers: list[float]) -> dict[str, float]:
        signed = {name: number * _sign(self._parts[name][0]) for name, number in zip(names, numbers, strict=True)}
        return {name: number for name, number in signed.items() if number not in (float("inf"), float("-inf"))}


def _count(part: Metric) -> Tensor:
    return part.count if part.count is not None else torch.zeros_like(part.value)


def _sign(part: Metric) -> float:
    return -1.0 if part.reduction is Reduction.MIN else 1.0


def _vector(scalars: list[Tensor], device: torch.device) -> Tensor:
    """Scalars of any dtype as one fp64 vector, empty for none."""
    return (
        torch.stack([scalar.double() for scalar in scalars])
        if scalars
        else torch.zeros(0, dtype=torch.float64, device=device)
    )
