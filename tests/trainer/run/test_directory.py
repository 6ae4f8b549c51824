"""The run directory: layout, refusing another run's results, resumes that neither double nor lose a line."""

from datetime import datetime
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ConfigError, DataError
from trainer.run.directory import RunDirectory
from trainer.run.files import read_jsonl, write_jsonl
from trainer.tracking.jsonl import JsonlTracker

CONFIG = {"actor": {"lr": 1e-6}, "trainer": {"seed": 1, "resume": "auto"}, "data": {"train_files": ["a.jsonl"]}}


def log_steps(run: RunDirectory, steps: range) -> None:
    tracker = JsonlTracker(run.metrics_file, run.updates_file)
    for step in steps:
        for mini_batch in range(2):
            tracker.log_update(step, 0, mini_batch, {"actor/loss": 0.5})
        tracker.log_step(step, {"reward/mean": step / 10})
        run.write_generations(step, [{"response": "x"}])
    tracker.close()


def started(path: Path, config: dict = CONFIG) -> RunDirectory:
    run = RunDirectory(path)
    run.start(config)
    return run


def test_a_start_makes_the_layout_and_keeps_the_config(tmp_path):
    run = started(tmp_path / "a" / "b")
    assert {entry.name for entry in run.path.iterdir()} == {
        "config.yaml",
        "starts.jsonl",
        "generations",
        "checkpoints",
        "plots",
        "tensorboard",
    }
    assert run.config() == CONFIG
    assert run.metrics() == run.updates() == []


def test_a_resume_cuts_the_logs_back_and_the_rest_keeps_its_bytes(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(1, 6))
    before = run.metrics_file.read_bytes().splitlines(keepends=True)
    run.start(CONFIG, resumed_step=3)
    assert run.metrics_file.read_bytes() == b"".join(before[:3])
    assert [line["step"] for line in run.updates()] == [1, 1, 2, 2, 3, 3]
    assert sorted(file.name for file in run.generations.iterdir()) == [f"step_00000{step}.jsonl" for step in (1, 2, 3)]
    log_steps(run, range(4, 6))
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in run.updates()] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_updates_of_a_step_that_was_cut_short_are_dropped(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(1, 3))
    with run.updates_file.open("a") as file:
        file.write('{"step": 3, "iteration": 0, "mini_batch": 0}\n{"step": 3, "itera')
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "rew')
    assert [line["step"] for line in run.metrics()] == [1, 2]  # readers pass over the broken line
    run.start(CONFIG, resumed_step=2)
    assert [line["step"] for line in run.updates()] == [1, 1, 2, 2]
    assert run.metrics_file.read_bytes().endswith(b"\n")


def test_a_resume_may_change_settings_and_keeps_the_new_ones(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(1, 3))
    changed = {**CONFIG, "actor": {"lr": 1e-5}}
    run.start(changed, resumed_step=2)
    assert run.config() == changed
    assert len(run.metrics()) == 2


def test_a_fresh_start_refuses_results_of_other_settings(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(1, 3))
    with pytest.raises(ConfigError, match=r"actor\.lr.*choose another trainer\.run_dir"):
        run.start({**CONFIG, "actor": {"lr": 1e-5}})
    assert len(run.metrics()) == 2
    assert run.config() == CONFIG


def test_a_run_that_died_before_its_first_checkpoint_starts_over(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(1, 3))
    run.start({**CONFIG, "trainer": {"seed": 1, "resume": "never"}})
    assert run.metrics() == run.updates() == []
    assert not list(run.generations.iterdir())


def test_a_run_that_made_all_its_steps_is_not_started_over(tmp_path):
    config = {**CONFIG, "trainer": {"seed": 1, "total_steps": 2}}
    run = started(tmp_path, config)
    log_steps(run, range(1, 3))
    with pytest.raises(ConfigError, match=r"all of its 2 steps .* would delete its logs"):
        run.start(config)
    assert len(run.metrics()) == 2


def test_a_resume_removes_what_the_lab_left_beside_later_rollouts(tmp_path):
    run = started(tmp_path)
    for step in (1, 2):
        (run.rollouts / f"step_00000{step}.lab").mkdir(parents=True)
        (run.rollouts / f"step_00000{step}.lab" / "losses.csv").write_text("")
    run.start(CONFIG, resumed_step=1)
    assert [entry.name for entry in run.rollouts.iterdir()] == ["step_000001.lab"]


def test_a_directory_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"trainer\.run_dir .*file/run.* cannot be made"):
        RunDirectory(tmp_path / "file" / "run").start(CONFIG)


def test_other_settings_are_fine_where_nothing_was_logged(tmp_path):
    run = started(tmp_path)
    run.start({**CONFIG, "actor": {"lr": 1e-5}})
    assert run.config()["actor"]["lr"] == 1e-5


def test_a_fresh_start_refuses_a_directory_with_checkpoints(tmp_path):
    run = started(tmp_path)
    (run.checkpoints / "step_000004").mkdir()
    with pytest.raises(ConfigError, match="step_000004"):
        run.start(CONFIG)
    run.start(CONFIG, resumed_step=4, checkpoint=run.checkpoints / "step_000004")


def test_a_leftover_of_a_save_is_no_checkpoint(tmp_path):
    run = started(tmp_path)
    (run.checkpoints / "step_000004.tmp").mkdir()
    run.start(CONFIG)


def test_a_checkpoint_of_another_directory_does_not_excuse_the_results_here(tmp_path):
    run = started(tmp_path / "here")
    (run.checkpoints / "step_000004").mkdir()
    with pytest.raises(ConfigError, match="holds checkpoints"):
        run.start(CONFIG, resumed_step=2, checkpoint=tmp_path / "there" / "checkpoints" / "step_000002")


def test_a_file_in_the_place_of_the_directory_is_a_user_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "run").start(CONFIG)


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        RunDirectory(tmp_path).metrics()


def test_a_log_without_steps_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"reward": 1}\n')
    with pytest.raises(DataError, match="no log of a run"):
        RunDirectory(tmp_path).start(CONFIG, resumed_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"reward": 1}\n'


def test_the_first_and_the_newest_generations_are_kept(tmp_path):
    run = started(tmp_path)
    for step in range(1, 8):
        run.write_generations(step, [{"response": "x"}], keep=3)
        run.write_generations(step, [{"response": "x"}], prefix="val_", keep=1)
    assert [file.stem for file in run.generation_files()] == ["step_000001", "step_000006", "step_000007"]
    assert [file.stem for file in run.generation_files("val_")] == ["val_step_000001", "val_step_000007"]


def test_each_start_says_when_how_and_with_what(tmp_path):
    run = started(tmp_path)
    log_steps(run, range(3))
    run.start(CONFIG, resumed_step=2)
    first, second = read_jsonl(run.starts_file)
    assert (first["step"], second["step"]) == (0, 2)
    assert {"torch", "ray", "megatron-core", "vllm"} <= first["versions"].keys()
    assert datetime.fromisoformat(first["date"]).tzinfo is not None
    assert first["command"]


def test_a_resume_forgets_hints_of_steps_to_come(tmp_path):
    run = started(tmp_path)
    write_jsonl(run.hints_file, [{"step": step, "name": str(step)} for step in (1, 3)])
    run.start(CONFIG, resumed_step=2)
    assert [hint["name"] for hint in read_jsonl(run.hints_file)] == ["1"]
