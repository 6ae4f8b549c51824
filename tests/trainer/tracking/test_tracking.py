"""Trackers: JSON lines, TensorBoard and wandb get the same numbers; what is missing is said clearly."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cfpo_hybrid.errors import ConfigError
from trainer.run.directory import RunDirectory
from trainer.tracking import JsonlTracker, TensorBoardTracker, Trackers, WandbTracker, check_trackers, open_trackers


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class FakeWandbRun:
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb_inits(monkeypatch) -> list[dict[str, Any]]:
    inits: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeWandbRun:
        run = FakeWandbRun()
        inits.append({**arguments, "run": run})
        return run

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return inits


def test_json_lines_have_their_place_and_null_for_what_is_not_finite(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", tmp_path / "updates.jsonl")
    tracker.log_update(1, 0, 3, {"actor/loss": math.nan})
    tracker.log_step(1, {"reward/mean": 0.25, "actor/kl_k3": math.inf})
    # on the disk already, before close
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "reward/mean": 0.25, "actor/kl_k3": None}
    assert json.loads((tmp_path / "updates.jsonl").read_text()) == {
        "step": 1,
        "iteration": 0,
        "mini_batch": 3,
        "actor/loss": None,
    }
    tracker.close()


def test_tensorboard_counts_steps_and_updates_apart(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    for step in (1, 2):
        for mini_batch in range(2):
            tracker.log_update(step, 0, mini_batch, {"actor/loss": float(mini_batch)})
        tracker.log_step(step, {"reward/mean": step / 2})
    tracker.close()
    assert scalars(tmp_path / "steps", "reward/mean") == [(1, 0.5), (2, 1.0)]
    assert scalars(tmp_path / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)]


def test_a_resume_shows_each_step_once_in_tensorboard(tmp_path):
    run = RunDirectory(tmp_path)
    run.start({})
    tracker = open_trackers(run, ["tensorboard"])
    for step in (1, 2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 0.0})
        tracker.log_step(step, {"reward/mean": 0.0})
    tracker.close()
    run.start({}, resumed_step=1)
    tracker = open_trackers(run, ["tensorboard"], resumed_step=1)
    for step in (2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 1.0})
        tracker.log_step(step, {"reward/mean": 1.0})
    tracker.close()
    assert scalars(run.tensorboard / "steps", "reward/mean") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert scalars(run.tensorboard / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 1.0)]
    assert [line["reward/mean"] for line in run.metrics()] == [0.0, 1.0, 1.0]


def test_wandb_gets_both_axes_and_a_resume_the_same_run(tmp_path, wandb_inits):
    for _ in range(2):
        tracker = WandbTracker(tmp_path, project="p", config={"a": 1}, first_update=4)
        tracker.log_update(2, 0, 0, {"actor/loss": 0.5})
        tracker.log_step(2, {"reward/mean": 1.0})
        tracker.close()
    first, second = wandb_inits
    assert first["id"] == second["id"]
    assert first["config"] == {"a": 1}
    assert first["run"].logged == [{"updates/actor/loss": 0.5, "update": 4}, {"reward/mean": 1.0, "step": 2}]
    assert first["run"].finished


def test_wandb_that_is_not_installed_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes the import fail
    with pytest.raises(ConfigError, match="pip install wandb"):
        WandbTracker(tmp_path, project="p", config={})


def test_unknown_trackers_are_answered_with_the_nearest(tmp_path):
    assert check_trackers(["tensorboard"]) == []
    (problem,) = check_trackers(["tensorbord"])
    assert "did you mean 'tensorboard'?" in problem
    with pytest.raises(ConfigError, match="tensorbord"):
        open_trackers(RunDirectory(tmp_path), ["tensorbord"])
    assert not list(tmp_path.iterdir())


def test_closing_reaches_every_tracker_also_when_one_fails():
    class Failing(JsonlTracker):
        def __init__(self) -> None:
            self.closed = False

        def close(self) -> None:
            self.closed = True
            raise OSError("disk full")

    trackers = [Failing(), Failing()]
    with pytest.raises(OSError, match="disk full"):
        Trackers(trackers).close()
    assert all(tracker.closed for tracker in trackers)
