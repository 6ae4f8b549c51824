import pytest

from trainer.pressure import OffPolicyPressure
from workers.config import AlgorithmConfig


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
    assert str(OffPolicyPressure.of(AlgorithmConfig(iterations=iterations, batch_ratio=batch_ratio))) == line
