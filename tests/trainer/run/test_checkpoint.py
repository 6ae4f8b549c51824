"""Checkpoints: visible when complete and not before, kept until the next one is, refused when they are not ours."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from cfpo_hybrid.errors import ModelError
from trainer.run.checkpoint import (
    STATE_FILE,
    CheckpointStore,
    TrainerState,
    load_state,
    package_versions,
    saved_model,
)
from trainer.run.directory import RunDirectory

CONFIG = {"model": {"path": "m"}, "data": {"train_files": ["a.jsonl"]}, "trainer": {"seed": 1}, "actor": {"lr": 1e-6}}
LAYOUT = {"dp": 2, "pp": 1, "tp": 1}


def state_of(step: int) -> TrainerState:
    return TrainerState(
        step=step, policy_version=step, prompts_consumed=64 * step, seed=1, layout=LAYOUT, config=CONFIG
    )


def save(store: CheckpointStore, step: int, content: str = "weights") -> Path:
    with store.writing(state_of(step)) as folder:
        (folder / "rank_0").mkdir()
        (folder / "rank_0" / "model.bin").write_text(content)
    return store.directory / f"step_{step:06d}"


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    store = CheckpointStore(tmp_path)
    folder = save(store, 10)
    assert load_state(folder) == state_of(10)
    assert store.latest() == folder
    assert (folder / "rank_0" / "model.bin").read_text() == "weights"
    assert load_state(folder).versions["torch"] == package_versions(["torch"])["torch"]


def test_a_state_without_a_fingerprint_of_its_inputs_can_be_read(tmp_path):
    file = save(CheckpointStore(tmp_path), 10) / STATE_FILE
    content = json.loads(file.read_text())
    del content["inputs"]
    file.write_text(json.dumps(content))
    assert load_state(file.parent).inputs == {}


def test_nothing_is_visible_while_the_workers_write(tmp_path):
    store = CheckpointStore(tmp_path)
    first = save(store, 1)
    with store.writing(state_of(2)) as folder:
        (folder / "model.bin").write_text("half")
        assert store.latest() == first
    assert store.latest() == tmp_path / "step_000002"


def test_a_save_that_fails_leaves_the_earlier_ones(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    first = save(store, 1)
    with pytest.raises(OSError, match="disk full"), store.writing(state_of(2)) as folder:
        (folder / "model.bin").write_text("half")
        raise OSError("disk full")
    assert store.complete() == [first]
    assert names(store) == ["step_000001", "step_000002.tmp"]
    save(store, 2)  # the leftover is in nobody's way
    assert names(store) == ["step_000002"]
    assert not (tmp_path / "step_000002" / "model.bin").exists()


def test_the_newest_are_kept_and_old_ones_go_only_after_the_rename(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 10):
        save(store, step)
    with store.writing(state_of(11)) as folder:
        (folder / "model.bin").write_text("x")
        assert names(store) == ["step_000002", "step_000010", "step_000011.tmp"]
    assert names(store) == ["step_000010", "step_000011"]


def test_keep_zero_keeps_all(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3, 4):
        save(store, step)
    assert len(store.complete()) == 4


def test_workers_whose_files_are_elsewhere_are_noticed(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(ModelError, match="file system that all nodes share"), store.writing(state_of(1)):
        pass
    assert store.latest() is None


def test_damaged_checkpoints_are_passed_over_with_a_warning(tmp_path, caplog):
    store = CheckpointStore(tmp_path)
    good = save(store, 1)
    for step, damage in ((2, "model"), (3, "state"), (4, "short")):
        folder = save(store, step)
        if damage == "model":
            (folder / "rank_0" / "model.bin").unlink()
        elif damage == "state":
            (folder / STATE_FILE).write_text('{"format": ')
        else:
            (folder / "rank_0" / "model.bin").write_text("w")
    with caplog.at_level(logging.WARNING):
        assert store.latest() == good
    assert len(caplog.records) == 3
    with pytest.raises(ModelError, match=r"rank_0/model.bin has 1 bytes instead of 7"):
        load_state(tmp_path / "step_000004")


def test_a_damaged_checkpoint_does_not_count_among_the_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    good = save(store, 1)
    broken = save(store, 2)
    (broken / STATE_FILE).unlink()
    newest = save(store, 3)
    assert store.complete() == [good, newest]


def test_what_resume_means(tmp_path):
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.resolve("auto") is None
    first, second = save(store, 1), save(store, 2)
    assert store.resolve("never") is None
    assert store.resolve("auto") == second
    assert store.resolve(str(first)) == first
    assert store.resolve(str(tmp_path / "run")) == second
    assert store.resolve(str(store.directory)) == second
    moved = tmp_path / "copied_by_hand"
    shutil.copytree(first, moved)
    assert store.resolve(str(moved)) == moved


def test_paths_that_lead_to_no_checkpoint_are_user_errors(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        store.resolve(str(tmp_path / "nowhere"))
    (tmp_path / "step_000003.tmp").mkdir()
    with pytest.raises(ModelError, match="never finished"):
        store.resolve(str(tmp_path / "step_000003.tmp"))
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="no checkpoint of a run"):
        store.resolve(str(tmp_path / "other"))
    (tmp_path / "other" / STATE_FILE).write_text(json.dumps({"format": "someone else's"}))
    with pytest.raises(ModelError, match="someone else's"):
        store.resolve(str(tmp_path / "other"))
    (tmp_path / "other" / STATE_FILE).write_text("[1]")
    with pytest.raises(ModelError, match="can be resumed"):
        store.resolve(str(tmp_path / "other"))


def test_going_on_from_an_earlier_one_sets_later_ones_aside(tmp_path):
    store = CheckpointStore(tmp_path)
    first = save(store, 1)
    save(store, 2, "old branch")
    save(store, 3)
    (moved, _) = store.set_aside_after(1)
    assert moved.name == "step_000002.superseded"
    assert store.latest() == first
    second = save(store, 2, "new branch")
    assert store.latest() == second
    assert (moved / "rank_0" / "model.bin").read_text() == "old branch"


def test_saving_a_step_again_keeps_the_older_save(tmp_path):
    store = CheckpointStore(tmp_path)
    for content in ("one", "two", "three"):
        save(store, 1, content)
    assert names(store) == ["step_000001", "step_000001.superseded", "step_000001.superseded1"]
    assert (tmp_path / "step_000001" / "rank_0" / "model.bin").read_text() == "three"


def write_model(run: RunDirectory, step: int) -> Path:
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
    write_model(run, 1)
    newest = write_model(run, 2)
    assert saved_model(str(run.path)) == str(newest / "model")
    assert saved_model(str(run.checkpoints / "step_000001")) == str(run.checkpoints / "step_000001" / "model")
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    assert saved_model(str(run.path)) == str(run.export)


def test_a_run_without_a_model_is_refused(run: RunDirectory):
    with pytest.raises(ModelError, match="neither an exported model nor a complete checkpoint"):
        saved_model(str(run.path))


def test_a_damaged_checkpoint_is_refused(run: RunDirectory):
    checkpoint = write_model(run, 1)
    (checkpoint / "model" / "config.json").write_text("longer than it was")
    with pytest.raises(ModelError):
        saved_model(str(checkpoint))
