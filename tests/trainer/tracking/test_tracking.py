"""Trackers: JSON lines, TensorBoard and wandb get the same numbers; what is missing is said clearly."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cfpo_hybrid.errors import ConfigError
from trainer.run.directory import RunDirectory
from trainer.tracking import Trackers, check_trackers, open_trackers
from trainer.tracking.jsonl import JsonlTracker


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


WANDB = """
class Run:
    def __init__(self, **options):
        self.options, self.logged, self.finished = options, [], False

    def define_metric(self, name, step_metric):
        pass

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True

runs = []

def init(**options):
    runs.append(Run(**options))
    return runs[-1]
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of that name, which remembers its runs."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield lambda: sys.modules["wandb"].runs
    for name in ("wandb", "trainer.tracking.wandb"):
        sys.modules.pop(name, None)


def started(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.start({"a": 1})
    return run


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
    run = started(tmp_path)
    tracker = open_trackers(run, ["tensorboard"])
    for step in (1, 2):
        for mini_batch in range(2):
            tracker.log_update(step, 0, mini_batch, {"actor/loss": float(mini_batch)})
        tracker.log_step(step, {"reward/mean": step / 2})
    tracker.close()
    assert scalars(run.tensorboard / "steps", "reward/mean") == [(1, 0.5), (2, 1.0)]
    assert scalars(run.tensorboard / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)]


def test_a_resume_shows_each_step_once_in_tensorboard(tmp_path):
    run = started(tmp_path)
    tracker = open_trackers(run, ["tensorboard"])
    for step in (1, 2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 0.0})
        tracker.log_step(step, {"reward/mean": 0.0})
    tracker.close()
    run.start({"a": 1}, resumed_step=1)
    tracker = open_trackers(run, ["tensorboard"], resumed_step=1)
    for step in (2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 1.0})
        tracker.log_step(step, {"reward/mean": 1.0})
    tracker.close()
    assert scalars(run.tensorboard / "steps", "reward/mean") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert scalars(run.tensorboard / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 1.0)]
    assert [line["reward/mean"] for line in run.metrics()] == [0.0, 1.0, 1.0]


def test_wandb_gets_both_axes_and_a_resume_the_same_run(tmp_path, wandb):
    run = started(tmp_path / "run")
    for step in (1, 2):
        tracker = open_trackers(run, ["wandb"], resumed_step=step - 1, project="p")
        tracker.log_update(step, 0, 0, {"actor/loss": 0.5})
        tracker.log_step(step, {"reward/mean": 1.0})
        tracker.close()
    first, second = wandb()
    assert first.options["id"] == second.options["id"]
    assert (first.options["project"], first.options["config"]) == ("p", {"a": 1})
    assert first.logged == [{"updates/actor/loss": 0.5, "update": 0}, {"reward/mean": 1.0, "step": 1}]
    assert second.logged == [{"updates/actor/loss": 0.5, "update": 1}, {"reward/mean": 1.0, "step": 2}]
    assert first.finished


def test_a_tracker_that_is_not_installed_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # what wandb leaves in the current folder is no package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(started(tmp_path / "run"), ["wandb"])


def test_a_package_is_imported_only_for_a_run_that_asks_for_it():
    code = (
        "import sys; from trainer.tracking import check_trackers, open_trackers; assert not check_trackers(['tensorboard']); "
        "loaded = {'tensorboard', 'torch.utils.tensorboard', 'wandb'} & set(sys.modules); assert not loaded, loaded"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


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
