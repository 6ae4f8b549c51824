"""The order of a training step and who is awake in it, with workers that only write down what they are given."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.protocol import DataProto
from trainer import step as step_module
from trainer.config import Config
from trainer.run.metrics import StageTimer, reshard_metrics
from trainer.session import Session
from trainer.step import train_step
from workers.config import AlgorithmConfig, RolloutConfig
from workers.messages import SyncReport

ROWS = DataProto(
    {
        "group_ids": torch.tensor([0, 0, 1, 1]),
        "rewards": torch.tensor([0.0, 1.0, 1.0, 0.0]),
        "response_lengths": torch.tensor([1, 2, 3, 1]),
    }
)


class Actors:
    """Answers every method of the hybrid worker; keeps what was called, and the mini-batches that each was given."""

    def __init__(self, lag: int = 0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.mini_batches: dict[str, list[int]] = {}
        self.lag = lag

    def run(self, method, *arguments):
        batch = arguments[0] if arguments and isinstance(arguments[0], DataProto) else None
        self.calls.append((method.name, *(arguments if batch is None else ())))
        if method.name == "sync_weights":
            probe, newest = arguments
            return sync_report(probe, 0 if newest else self.lag)
        if batch is None:
            return None
        self.mini_batches[method.name] = batch["mini_batch"].tolist()
        if method.name == "update_policy":
            return [SimpleNamespace(updates=[], trips=[])]
        return DataProto({"old_log_probs": torch.zeros(4, 3)})


def sync_report(probe: bool, lag: int) -> SyncReport:
    return SyncReport(
        policy_version=7 - lag,
        seconds=0.25,
        parts={"local": 0.125},
        bytes_total=100,
        bytes_moved=10,
        probe_difference=1e-6 if probe else None,
        weight_lag=lag,
    )


def session_of(actors: Actors, probe_every: int = 2, **algorithm: Any) -> Session:
    config = Config(algorithm=AlgorithmConfig(**algorithm), rollout=RolloutConfig(probe_every=probe_every))
    nobody: Any = SimpleNamespace()
    return Session(
        config=config,
        actors=actors,  # type: ignore[arg-type]
        graders=nobody,
        prompts=nobody,
        timer=StageTimer(),
        kl=KlController(coef=0.0),
    )


@pytest.fixture(autouse=True)
def sampled(monkeypatch):
    rollout = SimpleNamespace(batch=ROWS, reward_meta=[], metrics={})
    monkeypatch.setattr(step_module, "sample_rollout", lambda session, step: rollout)


def test_old_log_probs_are_taken_in_the_mini_batches_of_the_update():
    """Rows are spread over ranks and packed by mini-batch, or old and new log-probs differ by rounding."""
    actors = Actors()
    report = train_step(session_of(actors, batch_ratio=2), 0)
    assert sorted(report.batch["mini_batch"].tolist()) == [0, 0, 1, 1]
    assert actors.mini_batches["compute_log_probs"] == actors.mini_batches["update_policy"]


def test_training_wakes_once_and_generation_at_the_end():
    actors = Actors()
    session = session_of(actors, batch_ratio=2)
    report = train_step(session, 0)
    assert [call[0] for call in actors.calls] == ["wake_training", "compute_log_probs", "update_policy", "sync_weights"]
    assert report.policy_version == 7
    stages = {"wake_training", "old_log_probs", "advantages", "update", "reshard", "step"}
    assert session.timer.collect().keys() == {f"time/{stage}" for stage in stages}


def test_a_single_optimizer_step_on_policy_needs_no_pass_for_log_probs():
    actors = Actors()
    train_step(session_of(actors), 0)
    assert [call[0] for call in actors.calls] == ["wake_training", "update_policy", "sync_weights"]


@pytest.mark.parametrize(
    ("probe_every", "proven"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (0, [])], ids=["1", "2", "3", "never"]
)
def test_the_probe_counts_rollout_steps(probe_every: int, proven: list[int]):
    actors = Actors()
    session = session_of(actors, probe_every)
    for step in range(5):
        train_step(session, step)
    probes = [call[1] for call in actors.calls if call[0] == "sync_weights"]
    assert [step for step, probe in enumerate(probes, start=1) if probe] == proven


def test_validation_takes_the_newest_weights_only_where_others_are_in_place():
    actors = Actors(lag=1)
    session = session_of(actors, weight_lag=1)
    with session.newest_weights():  # nothing lags behind yet
        pass
    assert actors.calls == []
    session.reshard(probe=True)
    with session.newest_weights():
        assert actors.calls[-1] == ("sync_weights", False, True)
    assert actors.calls == [
        ("sync_weights", True, False),
        ("sync_weights", False, True),
        ("sync_weights", False, False),
    ]


def test_every_reshard_is_recorded():
    session = session_of(Actors(lag=1), weight_lag=1)
    session.reshard(probe=True)
    one = reshard_metrics(session.take_reshards())
    assert one == {
        "reshard/seconds": 0.25,
        "reshard/seconds_local": 0.125,
        "reshard/bytes": 100.0,
        "reshard/bytes_moved": 10.0,
        "reshard/probe_difference": 1e-6,
    }
    session.reshard(probe=False)
    with session.newest_weights():
        pass
    three = reshard_metrics(session.take_reshards())
    assert (three["reshard/count"], three["reshard/seconds"], three["reshard/bytes"]) == (3.0, 0.75, 300.0)
    assert "reshard/probe_difference" not in three
    assert session.take_reshards() == []
