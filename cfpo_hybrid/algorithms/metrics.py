"""Metrics as sums and extremes: gathered as tensors, reduced once an optimizer step.

A mean over micro-batches of different sizes is wrong; a sum of sums over a sum of counts is right for every split.
Nothing here waits for the device before ``reduce``, which ends in one copy to the host.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Float64, Num
from torch import Tensor

AllReduce = Callable[[Tensor, Literal["sum", "max"]], Tensor]
"""Reduces a vector over the ranks that hold different tokens, and returns it."""

Finish = Callable[[str, Sequence[float]], dict[str, float]]
"""From a metric's name and its sums over all parts, or its extreme, to the named numbers that they stand for; no number for
nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One micro-batch's part of a metric, detached on the device: sums that the parts add to, or an extreme.

    Example: 3 of 8 tokens clipped: ``Metric.mean(tensor(3.0), tensor(8.0))``.
    """

    values: tuple[Num[Tensor, "*sums"], ...]
    """Scalars, or vectors of like length in every part; each is added up by itself, and in its own dtype."""
    finish: Finish
    is_extreme: bool = False
    """The largest of the parts counts, and not their sum."""

    @classmethod
    def mean(cls, total: Num[Tensor, ""], count: Num[Tensor, ""]) -> "Metric":
        """The sum of all totals over that of all counts."""
        return cls((total, count), _mean)

    @classmethod
    def total(cls, value: Num[Tensor, ""]) -> "Metric":
        """The sum."""
        return cls((value,), _total)

    @classmethod
    def largest(cls, value: Num[Tensor, ""]) -> "Metric":
        """The largest value; -inf is that of nothing."""
        return cls((value,), _largest, is_extreme=True)

    @classmethod
    def smallest(cls, value: Num[Tensor, ""]) -> "Metric":
        """The smallest value; +inf is that of nothing."""
        return cls((-value,), _smallest, is_extreme=True)

    @classmethod
    def of_sums(cls, *sums: Num[Tensor, ""], finish: Finish) -> "Metric":
        """Numbers that are worked out of these sums once all parts are added up."""
        return cls((torch.stack([each.double() for each in sums]),), finish)


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
        vectors = {name: _put_together(self._parts[name]) for name in sorted(self._parts)}
        summed = [name for name in vectors if not self._parts[name][0].is_extreme]
        extreme = [name for name in vectors if self._parts[name][0].is_extreme]
        nothing = next(iter(vectors.values()))[:0]
        sums, extremes = (torch.cat([nothing, *(vectors[name] for name in names)]) for names in (summed, extreme))
        if all_reduce is not None:
            sums, extremes = all_reduce(sums, "sum"), all_reduce(extremes, "max")
        numbers, named = iter(torch.cat([sums, extremes]).tolist()), {}
        for name in summed + extreme:
            named |= self._parts[name][0].finish(name, list(islice(numbers, len(vectors[name]))))
        return named


def sample_size_share(total: float, squares: float, count: float) -> float:
    """Effective sample size of weights with this sum and sum of squares, as a share of their number."""
    return total**2 / (count * squares) if squares > 0 else 0.0


def _put_together(parts: Sequence[Metric]) -> Float64[Tensor, " sum"]:
    """The values of all parts added up, or the largest of them, one after the other."""
    of_parts = [torch.stack(values) for values in zip(*(part.values for part in parts), strict=True)]
    combined = [values.amax(dim=0) if parts[0].is_extreme else values.sum(dim=0) for values in of_parts]
    return torch.cat([values.double().reshape(-1) for values in combined])


def _mean(name: str, sums: Sequence[float]) -> dict[str, float]:
    total, count = sums
    return {name: total / count} if count > 0 else {}


def _total(name: str, sums: Sequence[float]) -> dict[str, float]:
    return {name: sums[0]}


def _largest(name: str, extreme: Sequence[float]) -> dict[str, float]:
    return {} if math.isinf(extreme[0]) else {name: extreme[0]}


def _smallest(name: str, extreme: Sequence[float]) -> dict[str, float]:
    return {} if math.isinf(extreme[0]) else {name: -extreme[0]}
