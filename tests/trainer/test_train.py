"""How a run begins: what a resume says and refuses, what it sets aside; settings that reach what they are about."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer import train as module
from trainer.config import Config, resolved
from trainer.config.load import load_config
from trainer.run.checkpoint import CheckpointStore
from trainer.run.directory import RunDirectory
from trainer.run.trainer_state import TrainerState
from trainer.session import checkpoint_layout
from trainer.train import Resume, resume_line, train


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_recipe(tmp_path))


def state_of(config: Config, step: int) -> TrainerState:
    return TrainerState(
        step=step,
        policy_version=step,
        prompts_consumed=0,
        seed=1,
        layout=checkpoint_layout(config),
        config=resolved(config),
    )


def save(config: Config, step: int) -> tuple[RunDirectory, CheckpointStore, TrainerState]:
    run, state = RunDirectory(config.trainer.run_dir), state_of(config, step)
    store = CheckpointStore(run.checkpoints)
    with store.writing(state) as folder:
        (folder / "weights").write_text("1")
    return run, store, state


def test_a_resume_names_what_has_changed(config: Config, tmp_path: Path):
    assert resume_line(state_of(config, 3), config) == "goes on after step 3, where its checkpoint was saved"
    words = ["policy_loss.name=clip", "actor.lr=0.5", "trainer.save_every=1"]
    changed = load_config(tmp_path / "recipe.yaml", words)
    line = resume_line(state_of(config, 5), changed)
    for part in ("after step 5", "policy_loss.name='clip' (was 'cfpo')", "actor.lr=0.5 (was 0.001)", "no step is left"):
        assert part in line
    assert "save_every" not in line


def test_a_checkpoint_behind_the_last_step_is_refused(config: Config, tmp_path: Path):
    _, store, _ = save(config, 4)
    shorter = load_config(tmp_path / "recipe.yaml", ["trainer.total_steps=3"])
    with pytest.raises(ConfigError, match=r"total_steps=3, .*step_000004, is one after step 4; set total_steps to 4"):
        module._resume(store, shorter)
    assert module._resume(store, config).step == 4


def test_an_export_of_another_step_is_set_aside(config: Config):
    run, store, state = save(config, 4)
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    checkpoint = run.checkpoints / "step_000004"
    module._open_run_directory(run, store, Resume(checkpoint, state), config)  # one of five steps is left
    assert not run.export.exists()
    assert (run.path / "export.superseded" / "config.json").exists()


def test_an_export_of_the_last_step_stays(config: Config):
    run, store, state = save(config, 5)
    run.export.mkdir()
    module._open_run_directory(run, store, Resume(run.checkpoints / "step_000005", state), config)
    assert run.export.is_dir()


@pytest.mark.parametrize("bar", [True, False])
def test_the_progress_bar_is_a_choice(bar: bool, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def progress(*_: object, **options: object) -> object:
        seen.append(options["bar"])
        return nullcontext(SimpleNamespace(note=print, stage=print, console=None))

    monkeypatch.setattr(module, "RunProgress", progress)
    monkeypatch.setattr(module, "open_engines", lambda config: nullcontext())
    for name in ("run_in", "plot_run", "print_summary"):
        monkeypatch.setattr(module, name, lambda *_: None)
    run = SimpleNamespace(resume=Resume(), directory=RunDirectory(tmp_path / "run"))
    monkeypatch.setattr(module, "prepare_run", lambda config: run)
    train(load_config(tmp_path / "recipe.yaml", [f"trainer.progress={str(bar).lower()}"]))
    assert seen == [bar]
