"""How often the collapse rule calls a run collapsed: runs that have lost nothing, and runs that have lost half of their gain.

    .venv/bin/python tests/benchmarks/bench_collapse.py [--runs 2000] [--long-runs 400] [--power-runs 1000]

Runs are simulated with a fixed seed. The rule looks after every step, and one look that finds a collapse is a false alarm; a
loss counts as found where the last look finds it. Each share stands before its 95 % confidence interval (Wilson).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from simulated_rewards import (  # noqa: E402
    alike,
    heavy,
    independent,
    normal,
    plus_minus,
    rise_and_fall,
    simulate,
    skewed,
    verdicts,
    wilson,
)

from trainer.run.reward_course import SHORTEST, RewardCourse  # noqa: E402

Lines = list[dict[str, Any]]
Maker = Callable[[np.random.Generator, int], Lines]

LENGTHS = (15, 32, 100, 500)
LONG = 100
"""Steps from which on fewer runs are simulated."""
LONGEST = 500
"""Steps of runs that only some cases are simulated for."""


def constant(mean: float, draw: Any = verdicts, **options: Any) -> Maker:
    return lambda random, steps: simulate(random, [mean] * steps, draw, **options)


def harder_within_drift(random: np.random.Generator, steps: int) -> Lines:
    """The second half of the prompts is harder by 0.025: a twentieth of the standard deviation of a reward."""
    return simulate(random, [0.5 if step < steps / 2 else 0.475 for step in range(steps)], prompts=256)


def gained(random: np.random.Generator, steps: int) -> Lines:
    return simulate(random, [min(0.8, 0.2 + 2.4 * step / steps) for step in range(steps)])


def widening_curriculum(random: np.random.Generator, steps: int) -> Lines:
    """Five levels, the k-th of which comes in after k tenths of the run; each costs 0.15."""
    highest = np.minimum(4, np.arange(steps) * 10 // steps)
    levels = (random.random((steps, 32)) * (highest + 1)[:, None]).astype(int)
    lines = simulate(random, 0.9 - 0.15 * levels, verdicts)
    return [
        lines[0],
        *({**line, "data/level": level} for line, level in zip(lines[1:], levels.mean(axis=1), strict=True)),
    ]


def ordered_curriculum(random: np.random.Generator, steps: int) -> Lines:
    """Two epochs, each from the easiest of five levels to the hardest."""
    levels = np.arange(steps) * 10 // steps % 5
    lines = simulate(random, 0.9 - 0.15 * levels, verdicts)
    return [lines[0], *({**line, "data/level": float(level)} for line, level in zip(lines[1:], levels, strict=True))]


def dynamic_sampling(random: np.random.Generator, steps: int) -> Lines:
    """Up to three rounds of 32 prompts, until 32 groups have a signal."""
    lines: Lines = []
    for step in range(1, steps + 1):
        rounds = verdicts(random, np.full((3, 1), 0.2), (3, 32, 4))
        spread = rounds.min(axis=2) < rounds.max(axis=2)
        taken = 1 + int((spread.sum(axis=1).cumsum()[:2] < 32).sum())
        drawn, signal = rounds[:taken].reshape(-1, 4), spread[:taken].reshape(-1)
        lines.append(
            {
                "step": step,
                "reward/mean": drawn[signal][:32].mean() if signal.any() else 0.0,
                "sampling/reward_mean": drawn.mean(),
                "sampling/reward_std": drawn.std(),
                "sampling/reward_stderr": drawn.mean(axis=1).std(ddof=1) / len(drawn) ** 0.5,
            }
        )
    return lines


def unmeasured(make: Maker) -> Maker:
    """The runs without ``reward/stderr``."""
    return lambda random, steps: [
        {name: value for name, value in line.items() if name != "reward/stderr"} for line in make(random, steps)
    ]


NOTHING_LOST: dict[str, Maker] = {
    **{f"0 or 1, mean {mean}": constant(mean) for mean in (0.01, 0.05, 0.1, 0.2, 0.5, 0.9)},
    "-1 or 1, mean 0": constant(0.0, plus_minus),
    "always 0": constant(0.0, independent),
    "0.05, prompts equally hard": constant(0.05, independent),
    "0.05, a prompt's responses alike": constant(0.05, alike),
    "0.2, 2 prompts x 4": constant(0.2, prompts=2),
    "0.1, 8 prompts x 8": constant(0.1, prompts=8, responses=8),
    "0.5, 256 prompts x 8": constant(0.5, prompts=256, responses=8),
    "normal": constant(0.0, normal),
    "Student's t, 2 degrees of freedom": constant(0.0, heavy),
    "log-normal penalties": constant(0.0, skewed),
    "0.2, a fifth of the steps without reward": constant(0.2, gaps=0.2),
    "0.2, no reward/stderr": unmeasured(constant(0.2)),
    "penalties, no reward/stderr": unmeasured(constant(0.0, skewed)),
    "0.5, later 0.475, 256 prompts x 4": harder_within_drift,
    "0.2 -> 0.8 and stays": gained,
    "widening curriculum, 0.9 -> 0.6": widening_curriculum,
    "ordered curriculum, 0.9 -> 0.3, twice": ordered_curriculum,
    "0.2, dynamic sampling": dynamic_sampling,
}
AT_LENGTH = (
    *(f"0 or 1, mean {mean}" for mean in (0.05, 0.1, 0.2, 0.5)),
    "-1 or 1, mean 0",
    "log-normal penalties",
    "0.5, later 0.475, 256 prompts x 4",
    "0.2, dynamic sampling",
)
"""Cases of the longest runs too."""
GAINS = (0.2, 0.3, 0.4, 0.5, 0.6)
POWER_LENGTHS = (20, 24, 32, 64, 128, 256)


def share(hits: int, runs: int) -> str:
    low, high = wilson(hits, runs)
    return f"{100 * hits / runs:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def alarmed(lines: Lines) -> bool:
    course = RewardCourse(lines)
    return any(course.look(count) for count in range(SHORTEST, len(course.rewards) + 1))


def false_alarms(runs: int, long_runs: int) -> None:
    print("| runs that have lost nothing |" + "".join(f" {steps} steps |" for steps in LENGTHS))
    print("|---|" + "---|" * len(LENGTHS))
    for name, make in NOTHING_LOST.items():
        cells = []
        for steps in LENGTHS:
            if steps == LONGEST and name not in AT_LENGTH:
                cells.append("")
                continue
            number = long_runs if steps >= LONG else runs
            random = np.random.default_rng(steps)
            cells.append(share(sum(alarmed(make(random, steps)) for _ in range(number)), number))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def power(runs: int, lost: float, prompts: int) -> None:
    print(f"\n| {lost:.0%} of the gain lost, {prompts} prompts x 4 |" + "".join(f" gain {gain} |" for gain in GAINS))
    print("|---|" + "---|" * len(GAINS))
    for steps in POWER_LENGTHS:
        cells = []
        for gain in GAINS:
            random = np.random.default_rng(steps)
            means = rise_and_fall(steps, 0.2, 0.2 + gain, 0.2 + (1 - lost) * gain)
            found = sum(RewardCourse(simulate(random, means, prompts=prompts)).look() is not None for _ in range(runs))
            cells.append(share(found, runs))
        print(f"| {steps} steps | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="simulated runs a case of up to 32 steps")
    parser.add_argument("--long-runs", type=int, default=400, help="of 100 steps and more")
    parser.add_argument("--power-runs", type=int, default=1000, help="simulated runs a gain and length")
    options = parser.parse_args()
    if options.runs:
        false_alarms(options.runs, options.long_runs)
    if not options.power_runs:
        return
    for lost, prompts in ((0.5, 32), (0.5, 128), (0.25, 32)):
        power(options.power_runs, lost, prompts)


if __name__ == "__main__":
    main()
