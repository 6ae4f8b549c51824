"""What a session concludes from its settings and its loss."""

from types import SimpleNamespace

import pytest

from cfpo_hybrid.algorithms.kl import KlController
from trainer.config import Config
from trainer.run.metrics import StageTimer
from trainer.session import Session
from workers.config import AlgorithmConfig


def session_of(**options) -> Session:
    settings, parts = {}, {}
    for name, value in options.items():
        (parts if name.startswith("loss_") else settings)[name] = value
    return Session(
        config=Config(algorithm=AlgorithmConfig(**settings)),
        actors=SimpleNamespace(),  # type: ignore[arg-type]
        graders=SimpleNamespace(),  # type: ignore[arg-type]
        prompts=SimpleNamespace(),  # type: ignore[arg-type]
        timer=StageTimer(),
        kl=KlController(coef=0.0),
        **parts,
    )


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, False),
        ({"batch_ratio": 2}, True),
        ({"weight_lag": 1}, True),
        ({"loss_takes_statistics": True}, True),
        ({"kl_coef": 0.1}, True),
        ({"loss_reads_reference": True}, True),
        ({"batch_ratio": 2, "old_log_probs": "rollout"}, False),
        ({"kl_coef": 0.1, "old_log_probs": "rollout"}, True),
        ({"loss_reads_reference": True, "old_log_probs": "rollout"}, True),
    ],
)
def test_when_the_pass_for_log_probs_has_something_to_add(options: dict, needed: bool):
    assert session_of(**options).needs_log_probs is needed
