"""A curriculum by level: which prompt comes at which position of the walk over the data.

Each order is a pure function of the position, the number of prompts drawn before, so a restart needs only that.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import JsonValue
from trainer.data.order import ORDER, prompts_at, stable_hash

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


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
    levels = [level for level in (level_of(extra.get(key)) for extra in extras) if level is not None]
    return sum(levels) / len(levels) if levels else float("nan")
