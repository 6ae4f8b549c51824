"""The course of a run's training reward, and the one rule that says whether the run has collapsed.

docs/stability.md derives the rule and has its rates of false alarms and of finds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 5
"""Rollout steps of the shortest window: that of the final and of the best reward."""
SHORTEST = 3 * WINDOW
"""Rollout steps with a reward below which a run is too short to say: room for a start, a best and an end."""
FALSE_ALARMS = 0.01
"""Probability, over a whole run of any length, of calling a policy collapsed that has lost nothing."""
DRIFT = 0.05
"""Standard deviations of a reward by which prompts may get harder without a loss of the policy's."""
HALF = NormalDist().inv_cdf(0.99)
"""Standard errors within which half of the gain counts as lost."""

RULE = (
    f"A run has collapsed where its mean reward has lost at least half of what it had gained over its first {WINDOW} rollout "
    f"steps, beyond the noise of the steps, and has not come back by its last one; the step is the one at which that can be "
    f"told. Of runs that have lost nothing at most {FALSE_ALARMS:.0%} are called collapsed. With fewer than {SHORTEST} rollout "
    f"steps a run is too short to say."
)
"""The rule in words."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fall:
    """Where a run has lost at least half of what it gained: mean rewards of windows, and the rollout steps they are over.

    Args:
        step: the last one looked at.
        start: mean of the first five.
        best: mean of the window before the loss, with its first and last step in ``best_steps``.
        end: mean of the window up to ``step``, which begins at ``end_begin``.
    """

    step: int
    start: float
    best: float
    best_steps: tuple[int, int]
    end: float
    end_begin: int

    def __str__(self) -> str:
        first, last = self.best_steps
        return (
            f"the mean reward is {self.end:.3g} over steps {self.end_begin} to {self.step}, {self.best:.3g} over "
            f"steps {first} to {last}, and was {self.start:.3g} at the start: at least half of its gain is lost, beyond noise"
        )


class RewardCourse:
    """The mean reward of each rollout step, in order, with its noise.

    With dynamic sampling it is the mean over all responses that were drawn, dropped groups included. Steps without a
    finite reward are left out.

    Args:
        lines: of ``metrics.jsonl``, or the same numbers of a live run.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        points = [point for line in lines if (point := _Point.of(line)) is not None]
        self.steps = [point.step for point in points]
        self.rewards = [point.reward for point in points]
        # Differences to the first reward: sums of equal rewards are then exactly 0.
        rewards = np.array(self.rewards) - np.array(self.rewards[:1])
        known = _sums(np.array([float(point.stderr is not None) for point in points]))
        counts = np.arange(len(points) + 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            self._rewards = _sums(rewards)
            self._variances = _sums(np.array([point.stderr or 0.0 for point in points]) ** 2)
            jumps = _sums(np.diff(rewards, prepend=rewards[:1]) ** 2 / 2)
            spreads = _sums(np.array([point.spread for point in points]) ** 2)
            # Of the first 0, 1, 2, ... steps: variance of a step's mean reward, the larger of the groups' and of that
            # between successive steps; loss that harder prompts may explain; quantile of each comparison.
            self._noise = np.maximum(self._variances / np.maximum(1, known), jumps / np.maximum(1, counts - 1))
            self._drift = DRIFT * np.sqrt(spreads / np.maximum(1, counts))
        self._quantile = np.array([_quantile(n, bool(known[n] == n)) for n in range(len(points) + 1)])
        self._levels = _sums(np.array([point.level for point in points]))

    @property
    def too_short(self) -> bool:
        """Whether there are too few steps for a verdict."""
        return len(self.rewards) < SHORTEST

    @property
    def final(self) -> float | None:
        """Mean of the last five rewards, or of all where they are fewer."""
        return fmean(self.rewards[-WINDOW:]) if self.rewards else None

    @property
    def best(self) -> float | None:
        """Largest mean of five successive rewards, or the mean of all where they are fewer."""
        ends = range(min(WINDOW, len(self.rewards)), len(self.rewards) + 1)
        return max(fmean(self.rewards[max(0, end - WINDOW) : end]) for end in ends) if self.rewards else None

    def collapse(self) -> Fall | None:
        """The fall at the first step from which on every look finds one, to the last; None where the last finds none."""
        found = None
        for count in range(len(self.rewards), SHORTEST - 1, -1):
            fall = self.look(count)
            if fall is None:
                break
            found = fall
        return found

    @np.errstate(invalid="ignore", over="ignore")  # Squares of rewards beyond 1e154 are infinite noise.
    def look(self, count: int | None = None) -> Fall | None:
        """The clearest fall that the first ``count`` rewards (by default all) show; None where they show none.

        Windows of 5, 7, 10, 15, ... steps, the last one (mean L) against each earlier one (B), which it does not overlap.
        There is a fall where, with standard errors s, standard deviation d of a reward and start A,

            B - L > DRIFT d + q s(B - L)                  lost, beyond noise and drift
            L - (A + B) / 2 <= HALF s(L - (A + B) / 2)    half of the gain, within noise; of the last 5 steps too

        q is the normal quantile of FALSE_ALARMS, shared out over all comparisons of all looks (the union bound): look n has
        15 / (n (n + 1)) of it, which sums to 1 from 15 on, and so each of its comparisons an equal part. Where some step's
        ``reward/stderr`` is not known, q is Student's, for noise that is measured between n steps.

        Args:
            count: of rewards, with which the run counts as ending there.
        """
        n = len(self.rewards) if count is None else count
        suspects = [width for width in _widths(n) if self._suspects[width][n]] if n >= SHORTEST else []
        clearest, found = 0.0, None
        for width in suspects:
            means, variances = _moving(self._rewards, n, width), self._window_variances(n, width)
            best, end = means[: n - 2 * width + 1], means[-1]
            best_variances, end_variance = variances[: len(best)], variances[-1]
            shortest, shortest_variances = _moving(self._rewards, n, WINDOW), self._window_variances(n, WINDOW)
            middle, middle_variances = (shortest[0] + best) / 2, (shortest_variances[0] + best_variances) / 4
            half_lost = (end - middle <= HALF * np.sqrt(end_variance + middle_variances)) & (
                shortest[-1] - middle <= HALF * np.sqrt(shortest_variances[-1] + middle_variances)
            )
            margin = best - end - self._drift[n] - self._quantile[n] * np.sqrt(best_variances + end_variance)
            margin[~(half_lost & self._no_harder(n, width)[: len(best)])] = 0.0
            place = int(margin.argmax())
            if margin[place] > clearest:
                clearest, found = float(margin[place]), (width, place)
        return None if found is None else self._fall(n, *found)

    def _fall(self, n: int, width: int, place: int) -> Fall:
        return Fall(
            step=self.steps[n - 1],
            start=fmean(self.rewards[:WINDOW]),
            best=fmean(self.rewards[place : place + width]),
            best_steps=(self.steps[place], self.steps[place + width - 1]),
            end=fmean(self.rewards[n - width : n]),
            end_begin=self.steps[n - width],
        )

    @cached_property
    def _suspects(self) -> dict[int, NDArray[np.bool_]]:
        """For each width whether the first 0, 1, 2, ... rewards might show a fall: no window varies less than the noise."""
        found = {}
        for width in _widths(len(self.rewards)):
            found[width] = np.zeros(len(self.rewards) + 1, dtype=bool)
            means = _moving(self._rewards, len(self.rewards), width)
            losses = np.maximum.accumulate(means)[: len(means) - width] - means[width:]
            needed = self._drift + self._quantile * np.sqrt(2 * self._noise / width)
            found[width][2 * width :] = ~(losses <= needed[2 * width :])
        return found

    def _window_variances(self, n: int, width: int) -> Floats:
        """Of the mean of each window of the first n steps: by its own groups, and no less than by the noise of all steps."""
        return np.maximum(_moving(self._variances, n, width) / width, self._noise[n] / width)

    def _no_harder(self, n: int, width: int) -> NDArray[np.bool_]:
        """Of which windows the last one's prompts are no harder, by the levels of a curriculum."""
        levels = _moving(self._levels, n, width)
        return levels[-1] <= levels + 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class _Point:
    """What the rule reads of a step."""

    step: int
    reward: float
    stderr: float | None
    spread: float
    level: float
    """0 where there are no levels."""

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "_Point | None":
        """None where the step has no reward."""
        of = "sampling/reward_" if "sampling/reward_mean" in line else "reward/"
        reward = _finite(line.get(of + "mean"))
        if reward is None:
            return None
        return cls(
            step=int(line["step"]),
            reward=reward,
            stderr=_finite(line.get(of + "stderr")),
            spread=_finite(line.get(of + "std")) or 0.0,
            level=_finite(line.get("data/level")) or 0.0,
        )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _widths(steps: int) -> list[int]:
    """Of the windows: each half as long again as the one before, as long as two have room.

    Example: 32 steps: 5, 7, 10, 15.
    """
    widths = [WINDOW] if steps >= 2 * WINDOW else []
    while widths and 2 * (longer := widths[-1] * 3 // 2) <= steps:
        widths.append(longer)
    return widths


@cache
def _quantile(n: int, groups_known: bool) -> float:
    """Of each comparison at look n: the normal one, or Student's with n - 1 degrees of freedom."""
    if n < SHORTEST:
        return math.inf
    comparisons = sum(n - 2 * width + 1 for width in _widths(n))
    z = -NormalDist().inv_cdf(FALSE_ALARMS * SHORTEST / (n * (n + 1)) / comparisons)
    if groups_known:
        return z
    # Wallace, Ann. Math. Statist. 30 (1959), 1124, solved for t.
    freedom = n - 1
    return math.sqrt(freedom * math.expm1((z * (8 * freedom + 3) / (8 * freedom + 1)) ** 2 / freedom))


def _sums(values: Floats) -> Floats:
    """Of the first 0, 1, 2, ... values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _moving(sums: Floats, n: int, width: int) -> Floats:
    """Mean of each ``width`` successive of the first n values, from their ``_sums``."""
    return (sums[width : n + 1] - sums[: n + 1 - width]) / width
