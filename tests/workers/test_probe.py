import torch

from workers.probe import Probe


def test_the_probe_is_the_same_everywhere_and_in_range():
    assert Probe(50, 100).tokens.equal(Probe(50, 100).tokens)
    assert Probe(50, 100).tokens.shape == (4, 32)
    assert Probe(50, 10).tokens.shape == (4, 10)
    assert int(Probe(50, 100).tokens.max()) < 50


def test_the_batch_holds_every_token_once():
    probe = Probe(50, 100)
    batch = probe.as_batch()
    assert torch.cat([batch["prompts"], batch["responses"]], dim=1).equal(probe.tokens)
