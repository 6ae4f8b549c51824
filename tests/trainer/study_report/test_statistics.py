"""Intervals against tables, and curves over seeds worked out by hand."""

import math
from pathlib import Path

import pytest
from study_report_world import plan_runs, write_run

from trainer.study.study import read_study
from trainer.study_report.statistics import (
    Band,
    CurveSettings,
    Interval,
    seed_curve,
    student_t,
)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.3027), (9, 2.2622), (10, 2.2281), (15, 2.1314), (30, 2.0423)]
)
def test_student_t_is_that_of_the_tables(freedom: int, quantile: float):
    assert student_t(freedom) == pytest.approx(quantile, rel=1e-4)


def test_an_interval_by_hand():
    interval = Interval.of([1.0, 2.0, 3.0])  # s = 1, t(2) = 4.3027
    assert interval is not None
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.3027 / math.sqrt(3))
    assert interval.bounds == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-3)


def test_one_seed_has_no_interval_and_none_nothing():
    assert Interval.of([0.5]) == Interval(mean=0.5, half_width=None)
    assert Interval.of([]) is None


def curve_of(tmp_path: Path, settings: CurveSettings, *rewards: list[float]):
    paths = plan_runs(tmp_path, {}, [({}, seed) for seed in range(len(rewards))])
    for seed, (path, values) in enumerate(zip(paths, rewards, strict=True)):
        write_run(path, values, updates=seed + 1)
    return seed_curve(read_study(tmp_path).runs, "reward/mean", settings)


def test_a_line_is_the_mean_of_the_seeds_that_are_there(tmp_path: Path):
    curve = curve_of(tmp_path, CurveSettings(), [1.0, 4.0], [3.0])
    assert curve is not None
    assert (curve.x, curve.mean, curve.low, curve.high) == ([1.0, 2.0], [2.0, 4.0], [1.0, 4.0], [3.0, 4.0])
    assert curve.complete == [True, False]


def test_a_confidence_band_and_optimizer_steps(tmp_path: Path):
    curve = curve_of(tmp_path, CurveSettings(by_optimizer_steps=True, band=Band.CONFIDENCE), [1.0, 4.0], [3.0])
    assert curve is not None
    assert curve.x == [1.5, 2.0]  # one update a step and two; at the second step only the first seed is left
    # s = sqrt(2), so the half width is 12.7062 x sqrt(2) / sqrt(2); a single seed has no width.
    assert (curve.low, curve.high) == (pytest.approx([2 - 12.7062, 4.0]), pytest.approx([2 + 12.7062, 4.0]))


def test_a_metric_that_no_run_has_is_no_line(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5])
    assert seed_curve(read_study(tmp_path).runs, "actor/entropy", CurveSettings()) is None
