import torch

from workers.probe import Probe, rounding


def test_the_probe_is_the_same_everywhere_and_in_range():
    assert Probe(50, 100).tokens.equal(Probe(50, 100).tokens)
    assert Probe(50, 100).tokens.shape == (4, 32)
    assert Probe(50, 10).tokens.shape == (4, 10)
    assert int(Probe(50, 100).tokens.max()) < 50


def test_the_batch_holds_every_token_once():
    probe = Probe(50, 100)
    batch = probe.as_batch()
    assert torch.cat([batch["prompts"], batch["responses"]], dim=1).equal(probe.tokens)


def test_the_coarser_engine_decides_what_rounding_explains():
    assert rounding(torch.float32, torch.float32) == 1e-4
    assert rounding(torch.bfloat16, torch.float32) == rounding(torch.float32, torch.bfloat16) == 0.2
