"""Storages are emptied and refilled in place: views stay views, and what is away can be read and saved all the same.

The ring of weights: which version stands in the model when, and that the current ones always come back.
"""

from pathlib import Path

import pytest
import torch
from gloo import run_gloo
from megatron.core import parallel_state
from policy_world import Case, build_policy, mini_batch, objective, rows_of_rank
from tiny_model import save_tiny_model

from workers.megatron.host_memory import LaggedWeights, Offload


def test_views_survive() -> None:
    buffer = torch.arange(6.0)
    weight, master = buffer[:4].view(2, 2), buffer[1:3]
    moment, gradient = torch.ones(3), torch.full((5,), 7.0)
    offload = Offload(weights=lambda: [weight], state=lambda: [master, moment], gradients=lambda: [gradient])
    offload.offload()
    offload.offload()  # twice is once
    assert buffer.untyped_storage().nbytes() == moment.untyped_storage().nbytes() == 0
    assert gradient.untyped_storage().nbytes() == 0

    offload.onload(training=False)
    assert buffer.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert moment.untyped_storage().nbytes() == 0

    offload.onload(training=True)
    assert moment.tolist() == [1.0, 1.0, 1.0]
    assert gradient.shape == (5,) and gradient.untyped_storage().nbytes() == 20
    master.fill_(9.0)  # still a part of the buffer, and of the weight
    assert weight.tolist() == [[0.0, 9.0], [9.0, 3.0]]


def test_new_weights_are_what_the_next_sleep_keeps() -> None:
    weight = torch.zeros(3)
    offload = Offload(weights=lambda: [weight], state=list, gradients=list)
    offload.offload()
    offload.onload(training=True)
    weight += 1
    offload.offload()
    offload.onload(training=False)
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_numbers_are_read_where_they_lie() -> None:
    buffer, moment = torch.arange(6.0), torch.ones(2, dtype=torch.bfloat16)
    weight, elsewhere = buffer[2:].view(2, 2).t(), torch.zeros(1)
    offload = Offload(weights=lambda: [buffer], state=lambda: [moment], gradients=list)
    assert offload.at_rest(weight) is weight
    offload.offload()
    assert torch.equal(offload.at_rest(weight), torch.tensor([[2.0, 4.0], [3.0, 5.0]]))
    assert torch.equal(offload.at_rest(moment), torch.ones(2, dtype=torch.bfloat16))
    assert offload.at_rest(elsewhere) is elsewhere
    offload.onload(training=False)
    assert offload.at_rest(weight) is weight
    assert offload.at_rest(moment) is not moment
    assert buffer.untyped_storage().nbytes() == 24 and moment.untyped_storage().nbytes() == 0


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


CASES = {
    1: {"fp32": Case(), "bf16, distributed optimizer": Case(bf16=True, distributed_optimizer=True)},
    2: {
        "fp32, dp, distributed optimizer": Case(distributed_optimizer=True),
        "bf16, tp": Case(tp=2, bf16=True),
        "bf16, dp, distributed optimizer": Case(bf16=True, distributed_optimizer=True),
    },
}


def save_awake_and_asleep(cases: dict[str, Case], folder: Path) -> list[float]:
    """Saves and exports each policy while it is awake and while it sleeps; bytes that it holds asleep."""
    held = []
    for name, case in cases.items():
        policy = build_policy(case, weight_lag=2)
        policy.build_reference()
        for seed in range(2):
            policy.lagged.remember()
            policy.update(rows_of_rank(mini_batch(seed=seed), policy), objective())
        for state in ("awake", "asleep"):
            policy.save(folder / name / state)
            policy.export(folder / name / state / "model", folder / "source")
            if state == "awake":
                policy.memory.offload()
        weights = policy.parameters_by_name().values()
        held.append(sum(weight.untyped_storage().nbytes() for weight in weights))
        policy.memory.onload(training=True)
        policy.update(rows_of_rank(mini_batch(seed=2), policy), objective())
        parallel_state.destroy_model_parallel()
    return held


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("world", CASES)
def test_a_model_that_sleeps_is_saved_and_exported_to_the_same_bytes(world: int, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "source")
    for held in run_gloo(world, save_awake_and_asleep, CASES[world], tmp_path):
        assert held == [0] * len(held)
    for name in CASES[world]:
        awake = bytes_of(tmp_path / name / "awake")
        assert {Path("state-rank0.safetensors"), Path("model/model.safetensors")} <= awake.keys()
        assert b"2_steps_ago/" in awake[Path("state-rank0.safetensors")]
        assert awake == bytes_of(tmp_path / name / "asleep")
