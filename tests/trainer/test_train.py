"""How a run begins: what a resume says and refuses, and what it sets aside."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_world import char_tokenizer
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer.config import Config, resolved
from trainer.rules import load_config
from trainer.run.checkpoint import CheckpointStore, TrainerState
from trainer.run.directory import RunDirectory
from trainer.session import checkpoint_layout
from trainer.train import prepare_run, resume_line, run_in
from workers.messages import SyncReport


@pytest.fixture
def config(tmp_path: Path) -> Config:
    recipe = write_recipe(tmp_path)
    char_tokenizer().save_pretrained(tmp_path / "model")
    return load_config(recipe)


def state_of(config: Config, step: int) -> TrainerState:
    return TrainerState(
        step=step,
        policy_version=step,
        prompts_consumed=0,
        seed=1,
        layout=checkpoint_layout(config),
        config=resolved(config),
    )


def save(config: Config, step: int) -> RunDirectory:
    run = RunDirectory(config.trainer.run_dir)
    with CheckpointStore(run.checkpoints).writing(state_of(config, step)) as folder:
        (folder / "weights").write_text("1")
    return run


def test_a_resume_names_what_has_changed(config: Config, tmp_path: Path):
    assert resume_line(state_of(config, 3), config) == "goes on after step 3, where its checkpoint was saved"
    words = ["policy_loss.name=clip", "actor.lr=0.5", "trainer.save_every=1"]
    changed = load_config(tmp_path / "recipe.yaml", words)
    line = resume_line(state_of(config, 5), changed)
    for part in ("after step 5", "policy_loss.name='clip' (was 'cfpo')", "actor.lr=0.5 (was 0.001)", "no step is left"):
        assert part in line
    assert "save_every" not in line


def test_a_checkpoint_behind_the_last_step_is_refused(config: Config, tmp_path: Path):
    save(config, 4)
    shorter = load_config(tmp_path / "recipe.yaml", ["trainer.total_steps=3"])
    with pytest.raises(ConfigError, match=r"total_steps=3, .*step_000004, is one after step 4; set total_steps to 4"):
        prepare_run(shorter)
    assert prepare_run(config).first_step == 4


def test_an_export_of_another_step_is_set_aside(config: Config):
    run = save(config, 4)
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    prepare_run(config)  # one of five steps is left
    assert not run.export.exists()
    assert (run.path / "export.superseded" / "config.json").exists()


def test_an_export_of_the_last_step_stays(config: Config):
    run = save(config, 5)
    run.export.mkdir()
    prepare_run(config)
    assert run.export.is_dir()


def test_a_resumed_run_begins_in_live_engines_where_its_checkpoint_was_saved(config: Config):
    run, calls, notes = save(config, 5), [], []

    def answer(method: Any, *arguments: Any) -> SyncReport | None:
        calls.append((method.name, arguments))
        if method.name != "sync_weights":
            return None
        return SyncReport(policy_version=5, seconds=0.0, parts={}, bytes_total=0, bytes_moved=0, probe_difference=2e-6)

    engines: Any = SimpleNamespace(actors=SimpleNamespace(run=answer), graders=None)
    progress: Any = SimpleNamespace(stage=lambda name: None, step=None, note=notes.append)
    run_in(engines, prepare_run(config), progress)
    (begin, of_begin), (sync, of_sync), *_ = calls
    assert (begin, of_begin[1:]) == ("begin_run", (str(run.checkpoints.absolute() / "step_000005"), 5))
    assert (sync, of_sync) == ("sync_weights", (True, False))
    assert notes[0].startswith("goes on after step 5")
    assert notes[1] == "vLLM and Megatron agree on the probe to 2.0e-06 nats"
