"""Which prompt comes when, and the seed of each response: pure functions of small integers, and the levels of problems.

Both rest on one hash of our own, so that no library's random generator, state or version enters. An order is a function of
the position, the number of prompts drawn before: a run that restarts computes the same prompts and the same seeds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import JsonValue
from trainer.data.columns import value_at

TRAINING, VALIDATION, ORDER = 0, 1, 2
"""First key of a hash: streams that must not share seeds."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def stable_hash(*keys: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """A 63-bit hash of integers; arrays are broadcast against each other.

    ``h <- mix(h + key + golden)`` for each key, with the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators", figure 15); the sign bit is dropped.

    Args:
        *keys: int64 numbers; their order matters.
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state + np.asarray(key, dtype=np.int64).astype(np.uint64) + _GOLDEN)
    return (state >> np.uint64(1)).astype(np.int64)


def epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The permutation of ``size`` prompts in an epoch: they are sorted by their hash."""
    return np.argsort(stable_hash(ORDER, seed, epoch, np.arange(size)), kind="stable")


def prompts_at(
    position: int, count: int, size: int, seed: int | None, levels: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The prompts number ``position`` to ``position + count - 1`` of an endless walk over the data, epoch by epoch.

    Args:
        position: prompts consumed before.
        count: prompts wanted; they may reach over the end of an epoch.
        size: prompts of the data set.
        seed: of the order; None takes the order of the files.
        levels: ``[size]``; where given, each epoch goes from low to high.
    """
    numbers = np.arange(position, position + count)
    epochs = numbers // size
    chosen = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order = np.arange(size) if seed is None else epoch_order(seed, int(epoch), size)
        if levels is not None:
            order = order[np.argsort(levels[order], kind="stable")]
        chosen[here] = order[numbers[here] % size]
    return chosen


class PromptOrder(Protocol):
    """An endless walk over the prompts."""

    def at(self, position: int, count: int) -> NDArray[np.int64]:
        """The prompts number ``position`` to ``position + count - 1``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EpochByEpoch:
    """All prompts, then all again.

    Args:
        size: number of prompts.
        seed: of each epoch's order; None takes the order of the files.
        levels: ``[size]``, where an epoch goes from low to high; prompts of one level in the order above.
    """

    size: int
    seed: int | None
    levels: NDArray[np.int64] | None = None

    def at(self, position: int, count: int) -> NDArray[np.int64]:
        """See ``PromptOrder``."""
        return prompts_at(position, count, self.size, self.seed, self.levels)


@dataclass(frozen=True, slots=True, eq=False)
class Widening:
    """The easiest level alone, then the two easiest, and so on; within a stage epoch by epoch over its prompts.

    Args:
        levels: ``[prompts]``, 0 the easiest.
        seed: of the orders; None takes the order of the files.
        prompts: drawn until the end of the stages; with n levels, level k comes in after k / n of them.
    """

    levels: NDArray[np.int64]
    seed: int | None
    prompts: int

    def at(self, position: int, count: int) -> NDArray[np.int64]:
        """See ``PromptOrder``."""
        stages = int(self.levels.max()) + 1
        starts = np.arange(stages) * self.prompts // stages
        numbers = np.arange(position, position + count)
        stage_of = np.searchsorted(starts, numbers, side="right") - 1
        chosen = np.empty(count, dtype=np.int64)
        for stage in np.unique(stage_of):
            here = stage_of == stage
            pool = np.flatnonzero(self.levels <= stage)
            first = int(numbers[here][0] - starts[stage])
            chosen[here] = pool[prompts_at(first, int(here.sum()), len(pool), self._seed_of(int(stage)))]
        return chosen

    def _seed_of(self, stage: int) -> int | None:
        return None if self.seed is None else int(stable_hash(ORDER, self.seed, stage)[0])


def level_of(value: JsonValue) -> float | None:
    """The number in a level such as 3, "3" or "Level 3"; None where there is none."""
    if isinstance(value, str):
        found = _NUMBER.search(value)
        return float(found[0]) if found else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def level_ranks(values: Iterable[JsonValue], key: str) -> NDArray[np.int64]:
    """Levels counted from 0, the easiest, without gaps; a row without a level counts as the hardest.

    Raises:
        DataError: no row has one.
    """
    numbers = np.array([np.inf if level is None else level for level in map(level_of, values)])
    known = np.unique(numbers[np.isfinite(numbers)])
    if len(known) == 0:
        raise DataError(
            f"no training row has a number in the column '{key}' (data.level_key), which a curriculum needs"
        )
    return np.searchsorted(known, numbers).clip(max=len(known) - 1)


def mean_level(extras: Iterable[dict[str, JsonValue]], key: str) -> float:
    """Mean level of rows by their further columns; rows without one are left out."""
    levels = [level for level in (level_of(value_at(extra, key)) for extra in extras) if level is not None]
    return sum(levels) / len(levels) if levels else float("nan")


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
