"""What the loop does about a limit that was crossed: it tells, saves the batch, and stops where that was declared."""

import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cfpo_hybrid.algorithms.kl import KlController
from cfpo_hybrid.errors import WatchStop
from cfpo_hybrid.protocol import DataProto, load
from trainer import loop
from trainer.config import Config, DataConfig, TrainerConfig, resolved
from trainer.run.checkpoint import CheckpointStore, load_state
from trainer.run.dead_runs import DeadRuns
from trainer.run.directory import RunDirectory
from trainer.run.files import read_jsonl
from trainer.run.metrics import StageTimer, StepReport
from trainer.session import Session
from workers.config import WatchConfig
from workers.hybrid_worker import HybridWorker
from workers.messages import Trip, UpdateRecord


def trip(action: str) -> Trip:
    return Trip(limit="watch.kl", finding="actor/kl_k3 is 0.25, above 0.1", action=action)


def report_of(step: int, actions: tuple[str, ...]) -> StepReport:
    rows, width = 4, 3
    ones = torch.ones(rows, width)
    batch = DataProto(
        {
            "prompts": torch.ones(rows, 2, dtype=torch.int64),
            "prompt_lengths": torch.full((rows,), 2),
            "responses": torch.ones(rows, width, dtype=torch.int64),
            "response_lengths": torch.full((rows,), width),
            "response_mask": ones.bool(),
            "truncated": torch.zeros(rows, dtype=torch.bool),
            "group_ids": torch.tensor([0, 0, 1, 1]),
            "rewards": torch.tensor([1.0, 0.0, 0.0, 1.0]),
            "advantages": torch.ones(rows),
            "mini_batch": torch.tensor([0, 0, 1, 1]),
            "rollout_log_probs": -ones,
        }
    )
    updates = [UpdateRecord(0, 0, {"actor/loss": 0.5, "actor/entropy": 1.0})]
    trips = [trip(action) for action in actions]
    return StepReport(
        step=step, batch=batch, kl_coef=0.0, reward_meta=[], metrics={}, updates=updates, trips=trips, policy_version=1
    )


@dataclass
class Log:
    """Stands for the tracker and for the progress display."""

    lines: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def log_step(self, step, metrics):
        self.lines.append({"step": step, **metrics})

    def log_update(self, *arguments):
        pass

    def step(self, *arguments):
        pass

    def note(self, message):
        self.notes.append(message)

    def waits_for(self, what):
        self.notes.append(f"waits for {what}")


def write_weights(method, directory, texts):
    """What the workers do when they are asked to save."""
    assert method is HybridWorker.save
    assert "# ??? after" in texts["README.md"]
    (Path(directory) / "weights").write_text("1")


def run_loop(
    folder: Path, monkeypatch, script: list[tuple[str, ...]], trainer: dict | None = None, **watch
) -> tuple[Log, RunDirectory]:
    """Runs one step for each entry of the script, which lists the actions of the limits that it crosses."""
    config = Config(
        data=DataConfig(train_files=["x"]),
        trainer=TrainerConfig(
            num_workers=1,
            total_steps=len(script),
            export_final=False,
            val_before_train=False,
            **{"generations_every": 0, "save_rollouts_every": 2} | (trainer or {}),
        ),
        watch=WatchConfig(**watch),
    )
    log, run = Log(), RunDirectory(folder)
    run.start(resolved(config))
    actors = SimpleNamespace(run=write_weights)
    session = Session(
        config=config,
        actors=actors,  # type: ignore[arg-type]
        graders=actors,  # type: ignore[arg-type]
        prompts=actors,  # type: ignore[arg-type]
        timer=StageTimer(),
        kl=KlController(coef=0.0),
        prompts_consumed=77,
    )
    monkeypatch.setattr(loop, "train_step", lambda session, step: report_of(step, script[step]))
    training = loop.TrainingLoop(
        session, run, CheckpointStore(run.checkpoints), tracker=log, progress=log, validation=None
    )  # type: ignore[arg-type]
    try:
        training.run_from(0)
    except WatchStop as stop:
        log.notes.append(str(stop))
    return log, run


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def test_a_warning_is_told_once_and_its_first_batches_are_saved(tmp_path, monkeypatch):
    script = [(), ("warn",), ("warn",), (), ("warn",)]
    log, run = run_loop(tmp_path, monkeypatch, script, saved_batches=2)
    assert log.notes == [f"step {step}: watch.kl: actor/kl_k3 is 0.25, above 0.1" for step in (2, 5)]
    assert files(run.offending) == ["step_000002.batch", "step_000003.batch"]
    assert files(run.rollouts) == ["step_000002.batch", "step_000004.batch"]
    assert [line.get("watch/trips") for line in log.lines] == [None, None, 1.0, 1.0, None, 1.0]  # from step 0 on
    assert files(run.checkpoints) == []


def test_a_saved_batch_is_whole(tmp_path, monkeypatch):
    _, run = run_loop(tmp_path, monkeypatch, [("warn",)])
    batch = load(run.offending / "step_000001.batch")
    assert batch.meta == {"step": 1, "trips": ["watch.kl: actor/kl_k3 is 0.25, above 0.1"]}
    assert batch["old_log_probs"].equal(batch["rollout_log_probs"])  # a single update recomputes none
    assert set(report_of(0, ()).batch.column_names) <= set(batch.column_names)


def test_a_stop_saves_the_state_and_the_batch_and_ends_the_run(tmp_path, monkeypatch):
    log, run = run_loop(tmp_path, monkeypatch, [(), ("warn", "stop"), ()], saved_batches=0)
    assert [line["step"] for line in log.lines] == [0, 1, 2]
    assert files(run.offending) == ["step_000002.batch"]
    state = load_state(run.checkpoints / "step_000002")
    assert (state.step, state.prompts_consumed) == (2, 77)
    for part in ("stopped after step 2 of 3", "actor/kl_k3 is 0.25", "checkpoints/step_000002", "trainer.resume=auto"):
        assert part in log.notes[-1]


@pytest.mark.parametrize(("save_every", "saved"), [(0, []), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_the_last_step_is_saved_where_checkpoints_are_on(tmp_path, monkeypatch, save_every, saved):
    _, run = run_loop(tmp_path, monkeypatch, [()] * 5, trainer={"save_every": save_every})
    assert files(run.checkpoints) == [f"step_00000{step}" for step in saved]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_after_its_step_and_saves_it(tmp_path, monkeypatch, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(loop, "step_metrics", lambda report, *_: signal.raise_signal(number) or {})
    with pytest.raises(KeyboardInterrupt):
        run_loop(tmp_path, monkeypatch, [()] * 4, trainer={"save_every": 10})
    assert files(tmp_path / "checkpoints") == ["step_000001"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize(("save_every", "interrupts"), [(10, 2), (0, 1)])
def test_a_second_interrupt_and_one_without_checkpoints_end_at_once(tmp_path, monkeypatch, save_every, interrupts):
    def interrupted(*_):
        for _ in range(interrupts):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "step_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_loop(tmp_path, monkeypatch, [()] * 4, trainer={"save_every": save_every})
    assert files(tmp_path / "checkpoints") == []


def test_a_limit_over_steps_stops_too(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "step_metrics", lambda report, reshards, seconds: {"reward/max": float(report.step == 0)})
    log, run = run_loop(tmp_path, monkeypatch, [()] * 6, zero_reward_streak=2)
    assert [line["step"] for line in log.lines] == [0, 1, 2, 3]
    assert files(run.checkpoints) == ["step_000003"]
    assert "no response has earned a reward above 0 for 2 rollout steps" in log.notes[-1]


def test_a_collapse_stops_where_that_is_declared(tmp_path, monkeypatch):
    def metrics(report, reshards, seconds):
        reward = 0.2 if report.step < 8 else 0.8 if report.step < 20 else 0.1
        return {"reward/mean": reward, "reward/std": 0.4, "reward/stderr": 0.03}

    monkeypatch.setattr(loop, "step_metrics", metrics)
    log, run = run_loop(tmp_path, monkeypatch, [()] * 40, collapse=True, collapse_action="stop")
    last = log.lines[-1]["step"]
    assert 20 < last < 30
    assert files(run.checkpoints) == [f"step_{last:06d}"]
    assert f"over steps {last - 4} to {last}, 0.8 over steps " in log.notes[-1]


def test_a_resume_drops_the_batches_of_steps_to_come(tmp_path, monkeypatch):
    _, run = run_loop(tmp_path, monkeypatch, [("warn",)] * 4)
    run.start(run.config(), resumed_step=2)
    assert files(run.offending) == ["step_000001.batch", "step_000002.batch"]
    assert files(run.rollouts) == ["step_000002.batch"]


def test_a_hint_is_told_once_over_resumes_and_kept(tmp_path, monkeypatch):
    flat = {"response_length/mean": 9.0, "response_length/truncated_share": 0.0, "reward/min": 0.0, "reward/max": 0.0}
    monkeypatch.setattr(loop, "step_metrics", lambda report, reshards, seconds: dict(flat))
    log, run = run_loop(tmp_path, monkeypatch, [()] * 5)
    assert [note.partition(":")[0] for note in log.notes] == ["step 3"]
    assert "all responses of 3 rollout steps earned the same, 0" in log.notes[0]
    assert [(hint["step"], hint["name"]) for hint in read_jsonl(run.hints_file)] == [(3, "equal_rewards")]
    again = DeadRuns(
        Config(data=DataConfig(train_files=["x"])), [flat] * 3, [h["name"] for h in read_jsonl(run.hints_file)]
    )
    assert again.look(flat) == {}


def test_responses_of_the_first_and_the_last_step_are_saved(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop.TrainingLoop, "_save_generations", lambda self, step, batch: saved.append(step))
    run_loop(tmp_path / "never", monkeypatch, [()] * 3)
    assert saved == []
    run_loop(tmp_path / "some", monkeypatch, [()] * 8, trainer={"generations_every": 3})
    assert saved == [1, 3, 6, 8]
