"""Intervals against tables; curves over seeds, and collapses in reward curves, worked out by hand."""

import math
from pathlib import Path

import pytest
from study_report_world import plan_runs, write_run

from trainer.study.study import read_study
from trainer.study_report.statistics import (
    Band,
    CollapseRule,
    CurveSettings,
    Interval,
    seed_curve,
    student_t,
    trailing_means,
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


def test_trailing_means():
    assert trailing_means([1.0, 3.0, 5.0, 7.0], window=2) == [1.0, 2.0, 4.0, 6.0]


def collapse(*rewards: float) -> int | None:
    return CollapseRule(window=1).step(dict(enumerate(rewards, start=1)))


def test_a_collapse_is_where_half_of_the_gain_is_lost_for_good():
    # First 0.2, best 0.8: half of the gain is 0.5, a quarter below the best 0.6. 0.55 is below the second bound alone.
    assert collapse(0.2, 0.8, 0.55, 0.49, 0.3) == 4


def test_a_recovery_is_no_collapse():
    assert collapse(0.2, 0.8, 0.1, 0.1, 0.7) is None


def test_a_second_fall_counts_from_its_own_step():
    assert collapse(0.2, 0.8, 0.1, 0.7, 0.1, 0.1) == 5


def test_noise_around_a_level_is_no_collapse():
    assert collapse(0.5, 0.52, 0.48, 0.51, 0.45) is None


def test_a_run_that_only_falls_has_collapsed():
    assert collapse(0.5, 0.45, 0.2, 0.1) == 3  # a quarter below 0.5 is 0.375


def test_the_window_delays_a_collapse():
    rewards = dict(enumerate([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], start=1))
    # Means of the last three: 1, 1, 1, 2/3, 1/3, 0; the bound is 3/4 of the best.
    assert CollapseRule(window=3).step(rewards) == 4
    assert CollapseRule(window=1).step(rewards) == 4
    assert CollapseRule(window=5).step(rewards) == 5  # 1, 1, 1, 3/4, 3/5, 2/5


def test_no_reward_is_no_collapse():
    assert CollapseRule().step({}) is None


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
