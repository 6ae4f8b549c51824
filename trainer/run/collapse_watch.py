"""The watch over rollout steps: entropy that falls, lengths that drift, rewards that stay away or are lost again."""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trainer.config.problem import count
from trainer.run.reward_course import RewardCourse
from workers.config import WatchConfig
from workers.messages import Trip

ENTROPY, LENGTH, BEST_REWARD = "actor/entropy", "response_length/mean", "reward/max"


class CollapseWatch:
    """Compares the course of a run with its declared limits.

    Args:
        limits: of the run.
        history: the lines of ``metrics.jsonl`` so far, the oldest first; a resumed run goes on from them.
    """

    def __init__(self, limits: WatchConfig, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self._limits = limits
        longest = max(2 * limits.window, limits.zero_reward_streak or 0)
        before = [line for line in history if LENGTH in line]
        self._lines: deque[Mapping[str, Any]] = deque(before, maxlen=longest)
        self._course: list[Mapping[str, Any]] = before if limits.collapse else []

    def look(self, metrics: Mapping[str, float]) -> list[Trip]:
        """The limits that the run has crossed with the step of these metrics.

        Args:
            metrics: with ``step``, as a line of ``metrics.jsonl`` has it.
        """
        self._lines.append(metrics)
        return [*self._entropy(), *self._length(), *self._no_reward(), *self._collapse(metrics)]

    def _entropy(self) -> Iterator[Trip]:
        limit, window = self._limits.entropy_slope, self._limits.window
        values = self._last(ENTROPY, window)
        if limit is None or len(values) < window:
            return
        slope = statistics.linear_regression(range(window), values).slope
        if slope < -limit:
            finding = f"{ENTROPY} falls by {-slope:.4g} nats a step over {window} steps, more than {limit:g}"
            yield Trip(limit="watch.entropy_slope", finding=finding, action=self._limits.entropy_slope_action)

    def _length(self) -> Iterator[Trip]:
        limit, window = self._limits.length_drift, self._limits.window
        values = self._last(LENGTH, 2 * window)
        if limit is None or len(values) < 2 * window:
            return
        before, now = statistics.fmean(values[:window]), statistics.fmean(values[window:])
        if abs(now - before) > limit * before:
            finding = (
                f"{LENGTH} is {now:.1f} over the last {window} steps and was {before:.1f} over the {window} before, a "
                f"difference of more than {limit:.0%}"
            )
            yield Trip(limit="watch.length_drift", finding=finding, action=self._limits.length_drift_action)

    def _no_reward(self) -> Iterator[Trip]:
        streak = self._limits.zero_reward_streak
        if streak is None:
            return
        best = self._last(BEST_REWARD, streak)
        if len(best) == streak and max(best) <= 0:
            finding = f"no response has earned a reward above 0 for {count(streak, 'rollout step')}"
            action = self._limits.zero_reward_streak_action
            yield Trip(limit="watch.zero_reward_streak", finding=finding, action=action)

    def _collapse(self, metrics: Mapping[str, float]) -> Iterator[Trip]:
        if not self._limits.collapse:
            return
        self._course.append(metrics)
        fall = RewardCourse(self._course).look()
        if fall is not None:
            yield Trip(limit="watch.collapse", finding=str(fall), action=self._limits.collapse_action)

    def _last(self, name: str, count: int) -> list[float]:
        """The newest values of a metric; a step without one, or whose value was not finite, is passed over."""
        values = [line[name] for line in self._lines if line.get(name) is not None]
        return [value for value in values if math.isfinite(value)][-count:]
