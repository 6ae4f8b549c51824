"""How a run begins: what a resume says and refuses, and what it sets aside."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from data_world import char_tokenizer
from tiny_recipe import write_recipe

from cfpo_hybrid.errors import ConfigError
from trainer import train as train_module
from trainer.cli import main
from trainer.config import Config
from trainer.config.paths import recorded
from trainer.rules import load_config
from trainer.run.checkpoint import CheckpointStore, TrainerState
from trainer.run.directory import RunDirectory
from trainer.run.resume import resume_line
from trainer.session import checkpoint_layout
from trainer.train import finished_line, prepare_run, run_in, train
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
        config=recorded(config),
    )


def save(config: Config, step: int) -> RunDirectory:
    run = RunDirectory(config.trainer.run_dir)
    with CheckpointStore(run.checkpoints).writing(state_of(config, step)) as folder:
        (folder / "weights").write_text("1")
    return run


def test_a_resume_names_what_has_changed(config: Config, tmp_path: Path):
    assert resume_line(state_of(config, 3), recorded(config)) == "goes on after step 3, where its checkpoint was saved"
    words = ["policy_loss.name=clip", "actor.lr=0.5", "trainer.save_every=1"]
    changed = load_config(tmp_path / "recipe.yaml", words)
    line = resume_line(state_of(config, 5), recorded(changed))
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
    run, calls, notes, waits = save(config, 5), [], [], []

    def answer(method: Any, *arguments: Any) -> SyncReport | None:
        calls.append((method.name, arguments))
        if method.name != "sync_weights":
            return None
        return SyncReport(policy_version=5, seconds=0.0, parts={}, bytes_total=0, bytes_moved=0, probe_difference=2e-6)

    engines: Any = SimpleNamespace(actors=SimpleNamespace(run=answer), graders=None)
    progress: Any = SimpleNamespace(stage=lambda name: None, step=None, note=notes.append, waits_for=waits.append)
    run_in(engines, prepare_run(config), progress)
    (begin, of_begin), (sync, of_sync), *_ = calls
    assert (begin, of_begin[1:]) == ("begin_run", (str(run.checkpoints.absolute() / "step_000005"), 5))
    assert (sync, of_sync) == ("sync_weights", (True, False))
    assert waits == [
        f"the checkpoint {run.checkpoints.absolute() / 'step_000005'} to be loaded into Megatron-core, and vLLM to start",
        "the first reshard of the weights into vLLM, and its probe",
    ]
    assert notes[0].startswith("goes on after step 5")
    assert notes[1] == "vLLM and Megatron agree on the probe to 2.0e-06 nats"


def finish(config: Config, *, checkpoint: bool = True) -> RunDirectory:
    """A run directory as it is after the last step."""
    run = save(config, config.trainer.total_steps) if checkpoint else RunDirectory(config.trainer.run_dir)
    run.path.mkdir(exist_ok=True)
    run.config_file.write_text(yaml.safe_dump(recorded(config)))
    run.metrics_file.write_text(json.dumps({"step": config.trainer.total_steps}) + "\n")
    run.export.mkdir()
    return run


def snapshot(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in folder.rglob("*")}


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_finished_run_says_so_and_starts_nothing(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: bool,
):
    run = finish(config, checkpoint=checkpoint)
    before = snapshot(tmp_path)
    monkeypatch.setattr(train_module, "prepare_run", None)  # nor is the tokenizer opened, or Ray started
    monkeypatch.setattr(train_module, "open_engines", None)
    assert main(["train", str(tmp_path / "recipe.yaml"), "trainer.trackers=[]"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"the run in {run.path} is finished: all 5 steps of it are made, so nothing is started; ")
    assert ("raise trainer.total_steps" in said) == checkpoint
    assert "name another trainer.run_dir" in said
    assert snapshot(tmp_path) == before


def test_a_finished_run_of_other_settings_is_a_mistake(config: Config, tmp_path: Path):
    finish(config)
    with pytest.raises(ConfigError, match=r"a finished run with other settings \(different: actor\.lr\)"):
        train(load_config(tmp_path / "recipe.yaml", ["actor.lr=0.5"]))


def test_more_steps_or_a_missing_export_are_left_to_do(config: Config, tmp_path: Path):
    run = finish(config)
    longer = load_config(tmp_path / "recipe.yaml", ["trainer.total_steps=6"])
    assert finished_line(longer) is None
    assert prepare_run(longer).first_step == 5
    assert finished_line(config) is None  # the export of step 5 was set aside
    (run.path / "export.superseded").rename(run.export)
    assert finished_line(config) is not None


def test_without_a_checkpoint_more_steps_are_refused(config: Config, tmp_path: Path):
    finish(config, checkpoint=False)
    with pytest.raises(ConfigError, match="made all of its 5 steps and saved no checkpoint to go on from"):
        train(load_config(tmp_path / "recipe.yaml", ["trainer.total_steps=6"]))


def checkpoint_of(config: Config, step: int) -> None:
    """As the loop saves it, with what the run is trained on."""
    inputs = prepare_run(config).inputs
    with CheckpointStore(RunDirectory(config.trainer.run_dir).checkpoints).writing(
        replace(state_of(config, step), inputs=inputs)
    ) as folder:
        (folder / "weights").write_text("1")


def test_a_resume_goes_by_the_contents_of_files(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint_of(config, 3)
    shutil.move(tmp_path / "train.jsonl", tmp_path / "moved.jsonl")
    shutil.move(tmp_path / "model", tmp_path / "moved_model")
    monkeypatch.chdir(tmp_path)
    moved = ["data.train_files=moved.jsonl", "model.path=moved_model"]
    assert prepare_run(load_config("recipe.yaml", moved)).first_step == 3
    rows = Path("moved.jsonl").read_text()
    Path("moved.jsonl").write_text(rows.replace("1+1", "1+2", 1).replace("{2}", "{3}", 1))
    with pytest.raises(
        ConfigError, match=r"give 16 prompts that are not the 16 .*Changed: data\.train_files or the contents"
    ):
        prepare_run(load_config("recipe.yaml", moved))


def test_prompts_that_no_longer_fit_are_refused_and_a_template_is_said(config: Config, tmp_path: Path):
    rows = [{"problem": "1" * length, "answer": "1"} for length in range(1, 24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint_of(config, 3)
    recipe = tmp_path / "recipe.yaml"
    for word in ("data.max_prompt_length=24", "data.system_prompt=Think"):
        with pytest.raises(ConfigError, match=rf"are not the 23 which .*Changed: {word.split('=')[0]} or"):
            prepare_run(load_config(recipe, [word]))
    fitting = prepare_run(load_config(recipe, ["data.system_prompt=T"]))
    line = resume_line(fitting.state, recorded(fitting.config), fitting.inputs)
    assert "data.system_prompt='T'" in line and "become other tokens than before" in line
