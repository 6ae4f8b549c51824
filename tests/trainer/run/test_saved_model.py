import json
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ModelError
from trainer.run.checkpoint import CheckpointStore
from trainer.run.directory import RunDirectory
from trainer.run.saved_model import saved_model
from trainer.run.trainer_state import TrainerState


def write_checkpoint(run: RunDirectory, step: int) -> Path:
    state = TrainerState(step=step, policy_version=step, prompts_consumed=0, seed=0, layout={"dp": 1}, config={})
    with CheckpointStore(run.checkpoints).writing(state) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps({"step": step}))
    return run.checkpoints / f"step_{step:06d}"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.start({"trainer": {"seed": 1}})
    return run


def test_a_hub_id_and_a_plain_folder_are_themselves(tmp_path: Path):
    assert saved_model("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"
    assert saved_model(str(tmp_path)) == str(tmp_path)


def test_a_run_means_its_newest_checkpoint_and_then_its_export(run: RunDirectory):
    write_checkpoint(run, 1)
    newest = write_checkpoint(run, 2)
    assert saved_model(str(run.path)) == str(newest / "model")
    assert saved_model(str(run.checkpoints / "step_000001")) == str(run.checkpoints / "step_000001" / "model")
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    assert saved_model(str(run.path)) == str(run.export)


def test_a_run_without_a_model_is_refused(run: RunDirectory):
    with pytest.raises(ModelError, match="neither an exported model nor a complete checkpoint"):
        saved_model(str(run.path))


def test_a_damaged_checkpoint_is_refused(run: RunDirectory):
    checkpoint = write_checkpoint(run, 1)
    (checkpoint / "model" / "config.json").write_text("longer than it was")
    with pytest.raises(ModelError):
        saved_model(str(checkpoint))
