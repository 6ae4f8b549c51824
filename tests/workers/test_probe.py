import pytest
import torch

from cfpo_hybrid.errors import ReshardError
from workers.probe import Probe, check_difference


def test_the_probe_is_the_same_everywhere_and_in_range():
    assert Probe(50, 100).tokens.equal(Probe(50, 100).tokens)
    assert Probe(50, 100).tokens.shape == (4, 32)
    assert Probe(50, 10).tokens.shape == (4, 10)
    assert int(Probe(50, 100).tokens.max()) < 50


def test_the_batch_holds_every_token_once():
    probe = Probe(50, 100)
    batch = probe.as_batch()
    assert torch.cat([batch["prompts"], batch["responses"]], dim=1).equal(probe.tokens)


def test_a_difference_beyond_rounding_stops_the_run():
    check_difference(0.9e-4, 1e-4, policy_version=3)
    with pytest.raises(ReshardError, match=r"policy version 3 .* 0\.5 nats"):
        check_difference(0.5, 1e-4, policy_version=3)
    with pytest.raises(ReshardError):
        check_difference(float("inf"), 1e-4, policy_version=3)
