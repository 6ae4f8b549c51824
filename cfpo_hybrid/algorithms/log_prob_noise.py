"""Noise of a known size on the rollout's log-probs: a mismatch to order, for measuring how a loss bears it."""

import math

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def log_prob_noise(seeds: Tensor, width: int, sigma: float) -> Tensor:
    """Gaussian noise in nats with mean 0 and standard deviation ``sigma``, fp32 ``[batch, width]``.

    A function of a row's seed and the position alone, so that it depends neither on the layout nor on the padding.
    Uniform numbers are those of SplitMix64 (Steele, Lea and Flood 2014, figure 15), made normal by Box and Muller's method.
    A ratio against noisy log-probs has the mean exp(sigma^2 / 2) where it would be 1.

    Args:
        seeds: ``[batch]`` int64, from (run seed, step, prompt, sample).
        width: response positions.
        sigma: in nats.
    """
    counters = np.arange(1, 2 * width + 1, dtype=np.uint64).reshape(width, 2)
    states = seeds.numpy(force=True).astype(np.uint64)[:, None, None] + counters * GOLDEN
    uniform = ((_mix(states) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    normal = np.sqrt(-2 * np.log(uniform[..., 0])) * np.cos(2 * math.pi * uniform[..., 1])
    return torch.from_numpy((sigma * normal).astype(np.float32))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
