"""The ring of weights: which version stands in the model when, and that the current ones always come back."""

import pytest
import torch

from workers.megatron.lagged_weights import LaggedWeights


class Model:
    """One parameter whose value is the version of the weights."""

    def __init__(self, lag: int) -> None:
        self.weight = torch.zeros(2, 3)
        self.lagged = LaggedWeights(lambda: {"weight": self.weight}, lag)

    @property
    def version(self) -> float:
        assert self.weight.eq(self.weight[0, 0]).all()
        return float(self.weight[0, 0])

    def rollout_step(self) -> None:
        self.lagged.remember()
        self.weight += 1

    def sampling_version(self) -> float:
        with self.lagged.in_place(self.lagged.steps):
            return self.version


@pytest.mark.parametrize(("lag", "sampled_by"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (3, [0, 0, 0, 0, 1])])
def test_rollouts_lag_behind_by_so_many_steps(lag, sampled_by):
    model, found, pointer = Model(lag), [], None
    for step in range(5):
        found.append(model.sampling_version())
        assert model.version == step
        assert model.lagged.steps == min(step, lag)
        model.rollout_step()
        pointer = pointer or model.weight.data_ptr()
        assert model.weight.data_ptr() == pointer  # parameters stay where vLLM's plan and Megatron's buffers know them
    assert found == sampled_by


def test_current_weights_come_back_after_an_error():
    model = Model(1)
    model.rollout_step()
    with pytest.raises(ValueError, match="broken"), model.lagged.in_place(1):
        assert model.version == 0
        raise ValueError("broken")
    assert model.version == 1


def test_every_kept_version_is_known_by_its_age():
    model = Model(2)
    for _ in range(4):
        model.rollout_step()
    assert {steps: float(weights["weight"][0, 0]) for steps, weights in model.lagged.by_steps().items()} == {2: 2, 1: 3}
