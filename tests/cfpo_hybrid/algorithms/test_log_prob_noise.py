"""Injected noise: of the right size, and a function of seed and position alone."""

import torch

from cfpo_hybrid.algorithms.mismatch import log_prob_noise

SEEDS = torch.randint(2**63 - 1, (500,), generator=torch.Generator().manual_seed(0))


def test_it_is_gaussian_of_that_size():
    noise = log_prob_noise(SEEDS, 200, sigma=0.3).double() / 0.3
    # 100,000 draws: the standard errors of these moments are 0.003, 0.005, 0.008 and 0.03.
    assert abs(noise.mean()) < 0.015
    assert abs(noise.square().mean() - 1) < 0.025
    assert abs(noise.pow(3).mean()) < 0.05
    assert abs(noise.pow(4).mean() - 3) < 0.15
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.015  # neighbours
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.015  # rows


def test_it_depends_on_seed_and_position_alone():
    wide = log_prob_noise(SEEDS[:8], 20, sigma=0.1)
    assert torch.equal(log_prob_noise(SEEDS[:8].flip(0), 12, sigma=0.1).flip(0), wide[:, :12])
    assert torch.equal(log_prob_noise(SEEDS[3:4], 20, sigma=0.1)[0], wide[3])
    assert len(wide.unique()) == wide.numel()
