"""The watch over steps: slopes, drifts and streaks by hand, and a resumed run's memory."""

import math

import pytest

from trainer.run.collapse_watch import CollapseWatch
from workers.config import WatchConfig


def line(entropy=1.0, length=100.0, best=1.0):
    return {"actor/entropy": entropy, "response_length/mean": length, "reward/max": best}


def trips(limits, lines):
    """The limits crossed at each line."""
    watch = CollapseWatch(limits)
    return [[trip.limit.removeprefix("watch.") for trip in watch.look(values)] for values in lines]


def test_nothing_is_watched_by_default():
    assert trips(WatchConfig(), [line(entropy=-step, length=step, best=0.0) for step in range(30)]) == [[]] * 30


def test_entropy_that_falls_too_fast():
    # Over 3 steps the line's slope is half the difference of the ends: -0.1, -0.25, -0.2.
    entropies = [1.0, 0.9, 0.8, 0.4, 0.4]
    found = trips(WatchConfig(entropy_slope=0.15, window=3), [line(entropy=value) for value in entropies])
    assert found == [[], [], [], ["entropy_slope"], ["entropy_slope"]]
    rising = trips(WatchConfig(entropy_slope=0.15, window=3), [line(entropy=value) for value in reversed(entropies)])
    assert rising == [[]] * 5


def test_lengths_that_drift_either_way():
    # Means of two against the two before: 100 -> 130, 30 % up; then 130 -> 90, down.
    lengths = [100, 100, 130, 130, 90, 90]
    found = trips(WatchConfig(length_drift=0.25, window=2), [line(length=float(value)) for value in lengths])
    assert found == [[], [], [], ["length_drift"], [], ["length_drift"]]


def test_rewards_that_stay_away():
    rewards = [0.0, -2.0, 0.1, 0.0, -1.0, 0.0]
    found = trips(WatchConfig(zero_reward_streak=3), [line(best=reward) for reward in rewards])
    assert found == [[], [], [], [], [], ["zero_reward_streak"]]


def test_a_resumed_run_remembers():
    limits = WatchConfig(zero_reward_streak=3, window=2)
    history = [{"val/accuracy": 0.5}, line(best=1.0), line(best=0.0), line(best=0.0)]
    (trip,) = CollapseWatch(limits, history).look(line(best=0.0))
    assert trip.action == "stop"
    assert trip.finding == "no response has earned a reward above 0 for 3 rollout steps"
    assert CollapseWatch(limits).look(line(best=0.0)) == []


@pytest.mark.parametrize("gap", [None, math.nan])
def test_values_that_were_not_finite_are_passed_over(gap):
    entropies = [1.0, gap, 0.5]
    found = trips(WatchConfig(entropy_slope=0.4, window=2), [line(entropy=value) for value in entropies])
    assert found == [[], [], ["entropy_slope"]]
