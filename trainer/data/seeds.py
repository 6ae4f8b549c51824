"""Sampling seeds: a pure function of (run seed, step, prompt, sample), so that neither layout nor order matters."""

import numpy as np
import torch
from torch import Tensor


def sampling_seeds(seed: int, step: int, group_ids: Tensor, sample_ids: Tensor) -> Tensor:
    """A well-mixed 63-bit seed for each row.

    Args:
        seed: the run's seed.
        step: the rollout step.
        group_ids: ``[batch]``, the prompt's place in the rollout batch.
        sample_ids: ``[batch]``, the response's place in its group.

    Returns:
        ``[batch]`` int64, not negative.
    """
    state = np.full(len(group_ids), seed, dtype=np.uint64)
    for part in (np.full(len(group_ids), step), group_ids.numpy(), sample_ids.numpy()):
        state = _mix(state ^ _mix(part.astype(np.uint64)))
    return torch.from_numpy((state >> np.uint64(1)).astype(np.int64))


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea, Flood 2014); wraps around by design."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
