"""Trackers: JSON lines, TensorBoard and wandb get the same numbers; what is missing is said clearly."""

import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cfpo_hybrid.errors import ConfigError, WatchStop
from trainer.config import TrainerConfig
from trainer.run.directory import RunDirectory
from trainer.tracking import Trackers, check_trackers, open_trackers
from trainer.tracking.jsonl import JsonlTracker


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


TENSORBOARD = TrainerConfig(trackers=["tensorboard"])


def texts(folder: Path) -> dict[str, str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["tensors"]
    found = {name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in names}
    return {name.removesuffix("/text_summary"): text for name, text in found.items()}


def records(folder: Path) -> list[Any]:
    """Everything that an offline wandb run has written; its service may write on for a moment after the run's end."""
    for _ in range(300):
        found = _records_until_here(folder)
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"wandb has not ended its run in {folder}")


def _records_until_here(folder: Path) -> list[Any]:
    """Records in blocks of 32 KiB, as in LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, found, parts, place = file.read_bytes(), [], b"", 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(parts))
            parts = b""
    return found


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """What was logged, without wandb's own columns."""
    rows = []
    for record in records(folder):
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in row.items() if not key.startswith("_")})
    return rows


def run_alone(code: str, folder: Path, **environment: str) -> str:
    """What a program prints that runs in a process and a folder of its own."""
    root = str(Path(__file__).parents[3])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def of_kind(folder: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records(folder) if record.HasField(kind)]


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
    tracker = open_trackers(run, TENSORBOARD)
    for step in (1, 2):
        for mini_batch in range(2):
            tracker.log_update(step, 0, mini_batch, {"actor/loss": float(mini_batch)})
        tracker.log_step(step, {"reward/mean": step / 2})
    tracker.close()
    assert scalars(run.tensorboard / "steps", "reward/mean") == [(1, 0.5), (2, 1.0)]
    assert texts(run.tensorboard / "steps") == {"config": "    a: 1"}
    assert scalars(run.tensorboard / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)]


def test_a_resume_shows_each_step_once_in_tensorboard(tmp_path):
    run = started(tmp_path)
    tracker = open_trackers(run, TENSORBOARD)
    for step in (1, 2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 0.0})
        tracker.log_step(step, {"reward/mean": 0.0})
    tracker.close()
    run.start({"a": 1}, resumed_step=1)
    tracker = open_trackers(run, TENSORBOARD, resumed_step=1)
    for step in (2, 3):
        tracker.log_update(step, 0, 0, {"actor/loss": 1.0})
        tracker.log_step(step, {"reward/mean": 1.0})
    tracker.close()
    assert scalars(run.tensorboard / "steps", "reward/mean") == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert scalars(run.tensorboard / "updates", "actor/loss") == [(0, 0.0), (1, 1.0), (2, 1.0)]
    assert [line["reward/mean"] for line in run.metrics()] == [0.0, 1.0, 1.0]


def test_wandb_gets_both_axes_and_what_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = started(tmp_path / "run")
    settings = TrainerConfig(trackers=["wandb"], project="p", run_name="n", run_group="g", tags=["a", "b"])
    with open_trackers(run, settings) as tracker:
        tracker.log_update(1, 0, 0, {"actor/loss": 0.5})
        tracker.log_step(1, {"reward/mean": 1.0})
    (first,) = [each for each in of_kind(run.path, "run") if each.project][:1]
    assert (first.project, first.display_name, first.run_group, sorted(first.tags)) == ("p", "n", "g", ["a", "b"])
    assert first.run_id == (run.path / "wandb_id.txt").read_text()
    assert {item.key: json.loads(item.value_json) for item in first.config.update if item.key == "a"} == {"a": 1}
    assert wandb_rows(run.path) == [{"updates/actor/loss": 0.5, "update": 0}, {"reward/mean": 1.0, "step": 1}]
    assert [each.exit_code for each in of_kind(run.path, "exit")] == [0]


def test_wandb_in_two_lanes_of_one_process(tmp_path, monkeypatch):
    """Each run gets its own numbers; the one that crashes is marked so, the other goes on and ends well."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    begun, crashed = Barrier(2), Event()

    def lane(name: str) -> None:
        with open_trackers(started(tmp_path / name), TrainerConfig(trackers=["wandb"])) as tracker:
            begun.wait(60)
            tracker.log_step(1, {name: 1.0})
            if name == "bad":
                raise RuntimeError
            assert crashed.wait(60)
            tracker.log_step(2, {name: 2.0})

    with ThreadPoolExecutor(2) as threads:
        good, bad = threads.submit(lane, "good"), threads.submit(lane, "bad")
        with pytest.raises(RuntimeError):
            bad.result(120)
        crashed.set()
        good.result(120)
    assert wandb_rows(tmp_path / "good") == [{"good": 1.0, "step": 1}, {"good": 2.0, "step": 2}]
    assert wandb_rows(tmp_path / "bad") == [{"bad": 1.0, "step": 1}]
    assert [each.exit_code for name in ("good", "bad") for each in of_kind(tmp_path / name, "exit")] == [0, 1]


def test_wandb_without_a_key_is_a_user_error(tmp_path):
    """In a process of its own: wandb reads its environment once."""
    code = (
        "from pathlib import Path; from cfpo_hybrid.errors import ConfigError; from trainer.config import TrainerConfig\n"
        "from trainer.run.directory import RunDirectory; from trainer.tracking import open_trackers\n"
        "run = RunDirectory(Path('run')); run.start({})\n"
        "try: open_trackers(run, TrainerConfig(trackers=['wandb']))\n"
        "except ConfigError as error: print(error)\n"
    )
    answer = run_alone(code, tmp_path, WANDB_MODE="online", HOME=str(tmp_path), NETRC=str(tmp_path / "netrc"))
    assert "'wandb' cannot begin the run (UsageError: " in answer
    assert "WANDB_MODE=offline" in answer


def test_mlflow_gets_config_group_both_axes_and_how_the_run_ended(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, settings = started(tmp_path / "run"), TrainerConfig(trackers=["mlflow"], run_group="g", tags=["t"])
    other = open_trackers(started(tmp_path / "other"), settings)
    with pytest.raises(RuntimeError), open_trackers(run, settings) as tracker:
        tracker.log_update(1, 0, 0, {"actor/loss": 0.5})
        tracker.log_step(1, {"val/pass@4": 1.0, "bad": math.nan})
        raise RuntimeError
    client, run_id = MlflowClient(), (run.path / "mlflow_id.txt").read_text()
    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name, found.data.params["a"]) == ("FAILED", "run", "1")
    assert (found.data.tags["group"], found.data.tags["t"]) == ("g", "true")
    run.start({"a": 1}, resumed_step=1)
    with open_trackers(run, settings, resumed_step=1) as tracker:
        tracker.log_update(2, 0, 0, {"actor/loss": 0.25})
        tracker.log_step(2, {"val/pass@4": 0.5})
    assert client.get_run(run_id).info.status == "FINISHED"
    history = {name: [(each.step, each.value) for each in client.get_metric_history(run_id, name)] for name in METRICS}
    assert history == {"val/pass_4": [(1, 1.0), (2, 0.5)], "updates/actor/loss": [(0, 0.5), (1, 0.25)]}
    other.close()
    assert client.get_run((tmp_path / "other" / "mlflow_id.txt").read_text()).info.status == "FINISHED"


METRICS = ("val/pass_4", "updates/actor/loss")


def test_trackio_in_two_lanes_of_one_process(tmp_path):
    """In a process of its own: Trackio reads its folder once, when it is imported."""
    code = (
        "from pathlib import Path; from trainer.config import TrainerConfig\n"
        "from trainer.run.directory import RunDirectory; from trainer.tracking import open_trackers\n"
        "runs = [RunDirectory(Path(name)) for name in ('one', 'two')]\n"
        "for run in runs: run.start({'a': 1})\n"
        "lanes = [open_trackers(run, TrainerConfig(trackers=['trackio'], project='p', run_group='g')) for run in runs]\n"
        "for number, lane in enumerate(lanes):\n"
        "    lane.log_update(1, 0, 0, {'actor/loss': 0.5}); lane.log_step(1, {'x': float(number), 'bad': float('nan')})\n"
        "lanes[0].close(crashed=True); lanes[1].log_step(2, {'x': 5.0}); lanes[1].close()\n"
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage\n"
        "own = ('x', 'bad', 'crashed', 'updates/actor/loss', 'step')\n"
        "rows = lambda name: [{k: row[k] for k in own if k in row} for row in SQLiteStorage.get_logs('p', name)]\n"
        "print(json.dumps({run.name: [run.config['_Group'], run.config['a'], rows(run.name)] "
        "for run in trackio.Api().runs('p')}))\n"
    )
    found = json.loads(run_alone(code, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio")).splitlines()[-1])
    update = {"updates/actor/loss": 0.5, "step": 0}
    assert found["one"] == ["g", 1, [update, {"x": 0.0, "step": 1}, {"crashed": 1.0, "step": 2}]]
    assert found["two"] == ["g", 1, [update, {"x": 1.0, "step": 1}, {"x": 5.0, "step": 2}]]


def test_a_tracker_that_is_not_installed_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # what wandb leaves in the current folder is no package
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match="pip install wandb"):
        open_trackers(RunDirectory(tmp_path / "run"), TrainerConfig(trackers=["wandb"]))


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
        open_trackers(RunDirectory(tmp_path), TrainerConfig(trackers=["tensorbord"]))
    assert not list(tmp_path.iterdir())


class Failing:
    """A tracker whose server is gone."""

    def __init__(self, calls: int) -> None:
        self.calls, self.crashed = calls, None

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise OSError("no route to host")

    def log_update(self, step: int, iteration: int, mini_batch: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self, *, crashed: bool = False) -> None:
        self.crashed = crashed


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_run(tmp_path, caplog):
    own = JsonlTracker(tmp_path / "metrics.jsonl", tmp_path / "updates.jsonl")
    failing, good = Failing(calls=1), Failing(calls=9)
    with Trackers(own, {"failing": failing, "good": good}) as trackers:
        for step in (1, 2, 3):
            trackers.log_step(step, {})
    assert [record.getMessage().split(" failed")[0] for record in caplog.records] == ["the tracker 'failing'"]
    assert good.calls == 6
    assert (failing.crashed, good.crashed) == (None, False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_runs_own_log_must_not_fail(tmp_path):
    good = Failing(calls=9)
    with pytest.raises(OSError, match="no route"), Trackers(Failing(calls=0), {"good": good}) as trackers:
        trackers.log_step(1, {})
    assert good.crashed is True


def test_a_run_that_its_limits_stop_has_not_crashed():
    good = Failing(calls=9)
    with pytest.raises(WatchStop), Trackers(Failing(calls=9), {"good": good}):
        raise WatchStop("as declared")
    assert good.crashed is False
