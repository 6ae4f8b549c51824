"""The learning rate of each optimizer step."""

import itertools

import pytest

from cfpo_hybrid.errors import ConfigError
from workers.config import OptimizerConfig
from workers.megatron.optimizer import LearningRate


def rates(total: int = 10, **options: object) -> list[float]:
    schedule = LearningRate(peak=2.0, config=OptimizerConfig(**options), total_steps=total)  # pyright: ignore
    return [schedule.at(step) for step in range(total)]


def test_constant() -> None:
    assert rates() == [2.0] * 10


def test_warm_up_wastes_no_step_and_reaches_the_peak() -> None:
    assert rates(warmup_ratio=0.4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize(
    ("ratio", "total", "steps"),
    [(0.07, 100, 7), (0.29, 100, 29), (0.1, 30, 3), (0.07, 101, 8), (1.0, 7, 7), (0.0, 9, 0)],
)
def test_warm_up_is_counted_without_float_error(ratio: float, total: int, steps: int) -> None:
    found = rates(total, warmup_ratio=ratio)
    assert sum(rate < 2.0 for rate in found) == max(0, steps - 1)
    assert OptimizerConfig(warmup_ratio=ratio).warmup_steps(total) == steps


def test_cosine() -> None:
    # After 2 steps of warm-up, 8 steps of half a cosine from 2.0 towards 0.2; half-way (step 6) it is at their mean.
    found = rates(schedule="cosine", warmup_ratio=0.2, min_lr_ratio=0.1)
    assert found[:3] == [1.0, 2.0, 2.0]
    assert found[6] == pytest.approx(1.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[2:]))


def test_beyond_the_end_stays_at_the_floor() -> None:
    schedule = LearningRate(peak=2.0, config=OptimizerConfig(schedule="cosine", min_lr_ratio=0.25), total_steps=4)
    assert schedule.at(4) == pytest.approx(0.5)
    assert schedule.at(400) == pytest.approx(0.5)


def test_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match=r"actor\.optimizer\.schedule='linear'"):
        rates(schedule="linear")
