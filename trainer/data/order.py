"""Which prompt comes when, and the seed of each response: pure functions of small integers.

Both rest on one hash of our own, so that no library's random generator, state or version enters: a run that
restarts computes the same prompts and the same seeds for its next step.
"""

import numpy as np
from numpy.typing import NDArray

TRAINING, VALIDATION, ORDER = 0, 1, 2
"""First key of a hash: streams that must not share seeds."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
