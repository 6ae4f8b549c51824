"""Lines of ``metrics.jsonl`` of runs whose policy has a given mean reward at each step, with rewards of many kinds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, Floats, tuple[int, int, int]], Floats]


def verdicts(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """0 or 1; each prompt has a chance of its own, spread as widely as Beta(p, 1 - p) is."""
    chances = random.beta(np.clip(means, 1e-9, None), np.clip(1 - means, 1e-9, None), shape[:2])
    return (random.random(shape) < chances[..., None]).astype(float)


def independent(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """0 or 1; all prompts are equally hard."""
    return (random.random(shape) < means[..., None]).astype(float)


def alike(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """0 or 1, the same for all responses to a prompt."""
    return np.repeat(independent(random, means, (*shape[:2], 1)), shape[2], axis=2)


def plus_minus(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """-1 or 1."""
    return 2 * verdicts(random, (means + 1) / 2, shape) - 1


def normal(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """Standard deviation 1 between prompts, and 1 within."""
    return means[..., None] + random.normal(size=(*shape[:2], 1)) + random.normal(size=shape)


def heavy(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """Student's t with 2 degrees of freedom, between prompts and within: the variance is infinite."""
    return means[..., None] + random.standard_t(2, (*shape[:2], 1)) + random.standard_t(2, shape)


def skewed(random: np.random.Generator, means: Floats, shape: tuple[int, int, int]) -> Floats:
    """Log-normal penalties, mostly near 0 and sometimes below -100."""
    return means[..., None] - np.exp(1.5 * random.normal(size=(*shape[:2], 1)) + random.normal(size=shape))


def simulate(
    random: np.random.Generator,
    means: Sequence[float] | Floats,
    draw: Draw = verdicts,
    *,
    prompts: int = 32,
    responses: int = 4,
    gaps: float = 0.0,
) -> list[dict[str, Any]]:
    """A line a step.

    Args:
        random: of the draws.
        means: reward that the policy earns on average, ``[step]`` or ``[step, prompt]``.
        draw: rewards ``[step, prompt, response]`` from their means, ``[step, 1]`` or ``[step, prompt]``.
        prompts: of a step.
        responses: to each prompt.
        gaps: share of steps without any reward (None).
    """
    expected = np.asarray(means, dtype=float)
    rewards = draw(random, expected.reshape(len(expected), -1), (len(expected), prompts, responses))
    lines: list[dict[str, Any]] = [{"step": 0, "val/accuracy": 0.5}]
    missing = random.random(len(expected)) < gaps
    of_groups, flat = rewards.mean(axis=2), rewards.reshape(len(expected), -1)
    errors = of_groups.std(axis=1, ddof=1) / math.sqrt(prompts) if prompts > 1 else [None] * len(expected)
    for step, (mean, spread, error) in enumerate(zip(flat.mean(axis=1), flat.std(axis=1), errors, strict=True), 1):
        known = {"reward/mean": mean, "reward/std": spread, "reward/stderr": error}
        lines.append({"step": step, **(dict.fromkeys(known) if missing[step - 1] else known)})
    return lines


def rise_and_fall(steps: int, start: float, best: float, end: float) -> Floats:
    """Mean rewards of a run: a quarter of it each to rise, to stay, to fall and to lie low."""
    return np.interp(np.arange(steps), np.array([0, 0.25, 0.5, 0.75, 1]) * (steps - 1), [start, best, best, end, end])


def wilson(hits: int, runs: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, 1927)."""
    z = 1.959963985
    share, weight = hits / runs, z * z / runs
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return middle - half, middle + half
