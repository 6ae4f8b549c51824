"""Numbers over seeds and over steps: intervals by Student's t, and curves with bands."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from trainer.study.study import OPTIMIZER_STEPS, StudyRun

_NORMAL = 1.959963985
_T_OF_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""Student's t for 1 to 9 degrees of freedom, two-sided 95 %."""


def student_t(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t, to four digits.

    From a table up to 9 degrees of freedom, beyond it by the expansion around the normal quantile (Abramowitz and
    Stegun, 26.7.5).
    """
    if freedom <= len(_T_OF_FEW):
        return _T_OF_FEW[freedom - 1]
    z = _NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over seeds and where its expectation lies with 95 % confidence.

    Example: values 1, 2 and 3: mean 2, half width 4.3027 x 1 / sqrt(3) = 2.484.
    """

    mean: float
    half_width: float | None
    """None for a single value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval | None":
        """mean +- t s / sqrt(n), s the sample standard deviation; None for no value."""
        if not values:
            return None
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean=mean, half_width=None)
        half_width = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean=mean, half_width=half_width)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Both ends; None for a single value."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


class Band(Enum):
    """What the band around a mean shows; the value is how the command line calls it."""

    RANGE = "range"
    CONFIDENCE = "ci"

    def __str__(self) -> str:
        return {
            Band.RANGE: "the range from the smallest to the largest seed",
            Band.CONFIDENCE: "the 95 % confidence interval of the mean by Student's t",
        }[self]

    def bounds(self, values: Sequence[float]) -> tuple[float, float]:
        """Both edges over the values of the seeds; a single value has no interval, and is both."""
        interval = Interval.of(values) if self is Band.CONFIDENCE else None
        if interval is None or interval.bounds is None:
            return min(values), max(values)
        return interval.bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveSettings:
    """What lies on the horizontal axis, and what the band is."""

    by_optimizer_steps: bool = False
    band: Band = Band.RANGE

    @property
    def x_label(self) -> str:
        """Of the horizontal axis."""
        return "optimizer step" if self.by_optimizer_steps else "rollout step"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedCurve:
    """Points of a line.

    Example: seeds with values 1 and 3 at step 1 and the first one's 4 at step 2: x (1, 2), mean (2, 4), low (1, 4),
    high (3, 4), complete (True, False).
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    complete: list[bool]
    """Whether every seed that has the metric at all has it here."""


def seed_curve(runs: Sequence[StudyRun], metric: str, settings: CurveSettings) -> SeedCurve | None:
    """The line of the runs of one cell; None when no run has the metric.

    Seeds are matched by rollout step; where optimizer steps are on the axis, their mean over the seeds is.
    """
    known = [(run, values) for run in runs if (values := run.values(metric))]
    points = []
    for step in sorted({step for _, values in known for step in values}):
        here = [(run, values[step]) for run, values in known if step in values]
        numbers = [value for _, value in here]
        taken = statistics.fmean(run.records[step][OPTIMIZER_STEPS] for run, _ in here)
        x = taken if settings.by_optimizer_steps else float(step)
        points.append((x, statistics.fmean(numbers), *settings.band.bounds(numbers), len(here) == len(known)))
    if not points:
        return None
    x, mean, low, high, complete = (list(column) for column in zip(*points, strict=True))
    return SeedCurve(x=x, mean=mean, low=low, high=high, complete=complete)
