"""One metric of the seeds of a cell as one line: mean, band, and where seeds are missing."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from trainer.study_report.reading import OPTIMIZER_STEPS, StudyRun
from trainer.study_report.statistics import Interval


class Band(Enum):
    """What the band around a mean shows; the value is how the command line calls it."""

    RANGE = "range"
    CONFIDENCE = "ci"

    def __str__(self) -> str:
        return {
            Band.RANGE: "the range from the smallest to the largest seed",
            Band.CONFIDENCE: "the 95 % confidence interval of the mean by Student's t",
        }[self]


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
    steps = sorted({step for _, values in known for step in values})
    if not steps:
        return None
    at = {step: [(run, values[step]) for run, values in known if step in values] for step in steps}
    bounds = [_BOUNDS[settings.band]([value for _, value in found]) for found in at.values()]
    return SeedCurve(
        x=[_place(step, [run for run, _ in found], settings) for step, found in at.items()],
        mean=[statistics.fmean(value for _, value in found) for found in at.values()],
        low=[low for low, _ in bounds],
        high=[high for _, high in bounds],
        complete=[len(found) == len(known) for found in at.values()],
    )


def _place(step: int, runs: Sequence[StudyRun], settings: CurveSettings) -> float:
    if not settings.by_optimizer_steps:
        return float(step)
    return statistics.fmean(run.records[step][OPTIMIZER_STEPS] for run in runs)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _confidence(values: Sequence[float]) -> tuple[float, float]:
    interval = Interval.of(values)
    bounds = interval.bounds if interval is not None else None
    return bounds if bounds is not None else _range(values)


_BOUNDS: dict[Band, Callable[[Sequence[float]], tuple[float, float]]] = {
    Band.RANGE: _range,
    Band.CONFIDENCE: _confidence,
}
