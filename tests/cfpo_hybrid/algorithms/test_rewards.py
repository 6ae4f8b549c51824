"""What a long response loses of its reward."""

import pytest
import torch

from cfpo_hybrid.algorithms.rewards import overlong_punishment
from cfpo_hybrid.errors import ConfigError


def test_the_punishment_of_dapo():
    # L_max 20, L_cache 5: nothing up to 15, then a fifth a token, -1 from 20 on.
    lengths = torch.tensor([1, 15, 16, 19, 20, 25])
    assert overlong_punishment(lengths, 20, 5).tolist() == pytest.approx([0, 0, -0.2, -0.8, -1, -1])


def test_a_buffer_that_does_not_fit():
    with pytest.raises(ConfigError, match="buffer=21 must be from 1 to the 20 tokens"):
        overlong_punishment(torch.tensor([1]), 20, 21)
