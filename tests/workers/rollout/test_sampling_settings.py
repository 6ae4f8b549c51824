"""Sampling settings refuse what no engine can do, all mistakes at once."""

import pytest

from cfpo_hybrid.errors import ConfigError
from workers.rollout.engine import SamplingSettings


def test_mistakes_are_found_together():
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(max_tokens=0, temperature=0.0, top_p=1.5, top_k=0)
    assert len(caught.value.problems) == 4


def test_defaults_sample_the_full_softmax():
    settings = SamplingSettings(max_tokens=1)
    assert (settings.temperature, settings.top_p, settings.top_k, settings.greedy) == (1.0, 1.0, -1, False)
