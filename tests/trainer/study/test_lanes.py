"""Lanes, with runs that only pretend: which engines are kept, what is recorded, how a study ends."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_study import write_study_file

from cfpo_hybrid.errors import WatchStop, WorkerError
from trainer.config import Config
from trainer.launch.live_engines import EngineIdentity
from trainer.study import lanes as lanes_module
from trainer.study.display import StudyDisplay
from trainer.study.lanes import Lane, Work, do_in_lanes
from trainer.study.plan import PlannedRun, plan_study
from trainer.study.study_file import read_study_file


class PretendedRuns:
    """Stands in for engines and training; remembers what was asked for."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.started = threading.Barrier(1)

    @contextmanager
    def open_engines(self, config: Config, tell: Any) -> Iterator[SimpleNamespace]:
        self.events.append("open")
        yield SimpleNamespace(identity=EngineIdentity.of(config))
        self.events.append("close")

    def prepare_run(self, config: Config) -> SimpleNamespace:
        return SimpleNamespace(name=Path(config.trainer.run_dir).name)

    def run_in(self, engines: Any, run: Any, progress: Any) -> None:
        self.started.wait(timeout=10)
        progress.stage("start")
        progress.stage("data")
        if run.name in self.failing:
            raise self.failing[run.name]
        progress.step(1, {"reward/mean": 0.25})
        progress.step(2, {"reward/mean": 0.75})
        self.events.append(run.name)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedRuns:
    pretended = PretendedRuns()
    for name in ("open_engines", "prepare_run", "run_in"):
        monkeypatch.setattr(lanes_module, name, getattr(pretended, name))
    return pretended


def plan(folder: Path, **keys: Any) -> list[PlannedRun]:
    return plan_study(read_study_file(write_study_file(folder, seeds=[1], **keys)))


def do(runs: list[PlannedRun], lanes: int = 1, terminal: bool = False) -> tuple[list[str], str]:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    with StudyDisplay(runs, runs, console=console) as display:
        failed = do_in_lanes(runs, lanes, display)
    return failed, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def outcome(run: PlannedRun, name: str = "done.json") -> dict[str, Any]:
    return json.loads((run.directory.path / name).read_text())


def test_engines_stay_up_for_runs_that_can_share_them(tmp_path: Path, pretended: PretendedRuns):
    runs = plan(tmp_path)
    failed, shown = do(runs)
    assert failed == []
    assert pretended.events == ["open", *(run.name for run in runs), "close"]
    assert [outcome(run)["reused_engines"] for run in runs] == [False, True, True, True]
    assert "[2/4] clip-iterations4-seed1 begins: 16 optimizer steps a rollout" in shown
    assert "[4/4] cfpo-iterations4-seed1 done in 0:00:00: reward 0.250 -> 0.750\n" in shown


def test_a_terminal_shows_bars_below_the_lines(tmp_path: Path, pretended: PretendedRuns):
    runs = plan(tmp_path)
    _, shown = do(runs, terminal=True)
    assert "[4/4] cfpo-iterations4-seed1 done in 0:00:00: reward 0.250 -> 0.750" in shown
    assert "runs 4/4" in shown
    assert "runs 4/4" not in do(plan(tmp_path))[1]


def test_runs_with_equal_engines_are_done_together(tmp_path: Path, pretended: PretendedRuns):
    """The lengths decide of vLLM, the temperature does not."""
    axes = {"rollout.temperature": [0.7, 1.0], "data.max_response_length": [64, 32]}
    do(plan(tmp_path, axes=axes))
    ordered = [event.removesuffix("-seed1") for event in pretended.events]
    assert ordered == [
        "open",
        "temperature0.7-max_response_length64",
        "temperature1.0-max_response_length64",
        "close",
        "open",
        "temperature0.7-max_response_length32",
        "temperature1.0-max_response_length32",
        "close",
    ]


def test_a_failed_run_is_recorded_and_the_next_gets_new_engines(tmp_path: Path, pretended: PretendedRuns):
    runs = plan(tmp_path)
    pretended.failing[runs[1].name] = WorkerError("hybrid", 0, "update_policy", "Traceback ...\nNumericsError: inf")
    failed, shown = do(runs)
    assert failed == [runs[1].name]
    assert pretended.events == ["open", runs[0].name, "close", "open", runs[2].name, runs[3].name, "close"]
    assert outcome(runs[1], "failed.json")["error"].endswith("NumericsError: inf")
    assert not (runs[1].directory.path / "done.json").exists()
    assert "FAILED: worker hybrid[rank 0] failed in update_policy: ... NumericsError: inf" in shown


def test_a_run_that_its_watch_stops_is_done_and_the_engines_stay(tmp_path: Path, pretended: PretendedRuns):
    runs = plan(tmp_path)
    pretended.failing[runs[1].name] = WatchStop("stopped after step 2 of 5, as declared: watch.kl: 0.3. To go on, ...")
    failed, shown = do(runs)
    assert failed == []
    assert pretended.events == ["open", runs[0].name, runs[2].name, runs[3].name, "close"]
    assert runs[1].is_done
    assert outcome(runs[1])["stopped"].startswith("stopped after step 2 of 5")
    assert f"{runs[1].name} stopped after step 2 of 5, as declared: watch.kl: 0.3; about" in shown


def test_a_finished_run_whose_record_is_missing_is_done_without_engines(
    tmp_path: Path, pretended: PretendedRuns, monkeypatch: pytest.MonkeyPatch
):
    runs = plan(tmp_path)
    monkeypatch.setattr(lanes_module, "finished_line", lambda config: "the run is finished")
    assert do(runs)[0] == [] and pretended.events == []
    assert all(run.is_done for run in runs)


def test_how_a_run_samples_is_free_in_live_engines(tmp_path: Path):
    axes = {"rollout.generation_rounds": [1, 3], "rollout.temperature": [0.7, 1.0], "rollout.group_size": [2, 4]}
    assert len({EngineIdentity.of(run.config) for run in plan(tmp_path, axes=axes)}) == 1


def test_lanes_work_side_by_side(tmp_path: Path, pretended: PretendedRuns):
    pretended.started = threading.Barrier(2)  # neither of two runs ends before both have begun
    runs = plan(tmp_path)
    assert do(runs, lanes=2)[0] == []
    assert sorted(pretended.events) == sorted([*(run.name for run in runs), "open", "open", "close", "close"])


def test_what_ends_the_study_ends_its_runs(tmp_path: Path, pretended: PretendedRuns):
    """A run that is under way when the study ends is neither done nor failed."""
    runs = plan(tmp_path)
    work = Work(runs, StudyDisplay(runs, runs, console=Console(file=io.StringIO())))
    work.stopping.set()
    with closing(Lane(work)) as lane:
        assert lane.run(runs[0]).error == "InterruptedError: the study is ending"
    assert pretended.events == ["open", "close"]
    assert not runs[0].directory.path.exists()
