import pytest

from trainer.terminal.words import pressure_line
from workers.config import AlgorithmConfig, PolicyLossConfig, RolloutConfig
from workers.step_plan import StepPlan


def line_of(**algorithm) -> str:
    return pressure_line(StepPlan.of(AlgorithmConfig(**algorithm), PolicyLossConfig(), RolloutConfig()))


@pytest.mark.parametrize(
    ("iterations", "batch_ratio", "line"),
    [
        (
            4,
            4,
            "16 optimizer steps a rollout, 15 of them off-policy, largest lag 15, each sample used 4 times",
        ),
        (1, 16, "16 optimizer steps a rollout, 15 of them off-policy, largest lag 15, each sample used once"),
        (8, 1, "8 optimizer steps a rollout, 7 of them off-policy, largest lag 7, each sample used 8 times"),
        (1, 1, "1 optimizer step a rollout, 0 of them off-policy, largest lag 0, each sample used once"),
    ],
)
def test_the_line(iterations: int, batch_ratio: int, line: str):
    assert line_of(iterations=iterations, batch_ratio=batch_ratio) == line


def test_the_line_of_injected_pressure():
    assert line_of(iterations=2, batch_ratio=2, weight_lag=3, log_prob_noise=0.05) == (
        "4 optimizer steps a rollout, 4 of them off-policy, largest lag 15, each sample used 2 times, "
        "sampled by weights 3 rollout steps old, noise of 0.05 nats on the rollout's log-probs"
    )
