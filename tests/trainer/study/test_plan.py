import json
from pathlib import Path
from typing import Any

import pytest
from tiny_study import AXES, write_study_file

from cfpo_hybrid.errors import ConfigError
from trainer import cli
from trainer.config import resolved
from trainer.study.plan import Attempt, PlannedRun, longest_first, plan_study
from trainer.study.study_file import read_study_file

DONE = Attempt(seconds=9.0, start_seconds=1.0, reused_engines=True)
FAILED = Attempt(seconds=2.0, start_seconds=None, reused_engines=False, error="it broke")


def plan(folder: Path, *words: str, **keys: Any) -> list[PlannedRun]:
    return plan_study(read_study_file(write_study_file(folder, **keys), words))


def mistakes(folder: Path, *words: str, **keys: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        plan(folder, *words, **keys)
    return caught.value.problems


def test_every_cell_runs_with_every_seed(tmp_path: Path):
    runs = plan(tmp_path)
    cells = ["clip-iterations1", "clip-iterations4", "cfpo-iterations1", "cfpo-iterations4"]
    assert [run.name for run in runs] == [f"{cell}-seed{seed}" for seed in (1, 2) for cell in cells]
    config = runs[5].config  # clip, 4 iterations, seed 2
    assert (config.policy_loss.name, config.algorithm.iterations, config.trainer.seed) == ("clip", 4, 2)
    assert config.trainer.run_dir == str(tmp_path / "out" / "runs" / "clip-iterations4-seed2")
    assert config.trainer.total_steps == 5


def test_the_longest_run_of_a_seed_goes_first(tmp_path: Path):
    begun = [(run.seed, run.config.algorithm.iterations) for run in longest_first(plan(tmp_path, seeds=[2, 1]))]
    assert begun == [(2, 4), (2, 4), (2, 1), (2, 1), (1, 4), (1, 4), (1, 1), (1, 1)]


def test_the_recipes_knobs_stay_with_its_loss(tmp_path: Path):
    knobs = {run.cell["policy_loss.name"]: run.config.policy_loss.knobs for run in plan(tmp_path)}
    assert knobs == {"clip": {"clip_low": 0.2, "clip_high": 0.2}, "cfpo": {"epsilon": 0.1}}


def test_words_stand_over_settings_and_cells_over_both(tmp_path: Path):
    cells = [{"when": {"algorithm.iterations": 4}, "set": {"actor.lr": 0.4}}]
    runs = plan(tmp_path, "actor.lr=0.3", settings={"actor.lr": 0.2}, cells=cells)
    assert [run.config.actor.lr for run in runs[:4]] == [0.3, 0.4, 0.3, 0.4]


def test_iso_compute_gives_every_run_the_same_passes_over_samples(tmp_path: Path):
    runs = plan(tmp_path, "trainer.total_steps=8", mode="iso_compute")
    assert [run.config.trainer.total_steps for run in runs[:4]] == [8, 2, 8, 2]
    assert len({run.config.trainer.total_steps * run.config.algorithm.iterations for run in runs}) == 1


def test_mistakes_of_all_cells_come_together(tmp_path: Path):
    """Wrong everywhere, wrong in two of the cells, wrong in one."""
    axes = {**AXES, "algorithm.batch_ratio": [1, 3]}
    one_cell = {"policy_loss.name": "clip", "algorithm.iterations": 4, "algorithm.batch_ratio": 1}
    cells = [{"when": one_cell, "set": {"actor.lrr": 1}}]
    found = mistakes(tmp_path, "rollout.group_size=0", axes=axes, cells=cells)
    assert any(one.startswith("every cell, all 16 runs: rollout.group_size=0 must be at least 1") for one in found)
    assert any(one.startswith("clip-iterations1-batch_ratio3 and 3 more, 8 of 16 runs: ") for one in found)
    assert any(one.startswith("clip-iterations4-batch_ratio1, 2 of 16 runs: unknown key 'actor.lrr'") for one in found)


def test_iso_compute_needs_steps_that_can_be_divided(tmp_path: Path):
    (found,) = mistakes(tmp_path, "trainer.total_steps=6", mode="iso_compute")
    assert found.startswith("clip-iterations4 and 1 more, 4 of 8 runs: trainer.total_steps=6 is no multiple of")


def test_results_of_other_settings_are_not_taken_for_this_studys(tmp_path: Path):
    first, second, *_ = plan(tmp_path)
    for run in (first, second):
        run.directory.start(resolved(run.config))
    assert len(plan(tmp_path, "trainer.trackers=[]")) == 8
    (found,) = mistakes(tmp_path, "actor.lr=0.7")
    assert found.startswith(f"{first.name}, and 1 more of 8 runs: ")
    assert "(different: actor.lr)" in found


def test_a_failure_is_recorded_until_the_run_is_done(tmp_path: Path):
    run = plan(tmp_path)[0]
    run.record(FAILED)
    failure = run.directory.path / "failed.json"
    assert json.loads(failure.read_text())["error"] == "it broke"
    assert not run.is_done
    run.record(DONE)
    assert run.is_done
    assert not failure.exists()


def test_a_check_lists_the_runs_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_study_file(tmp_path)
    plan(tmp_path)[0].record(DONE)
    assert cli.main(["study", str(path), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 runs, 1 of them done")
    assert lines[1].startswith("clip-iterations1-seed1  done  5 rollout steps; 4 optimizer steps a rollout")
    assert lines[2].startswith("clip-iterations4-seed1  to do")
    assert not (tmp_path / "out" / "study.json").exists()
    assert cli.main(["study", str(path), "actor.lr=-1"]) == 2
    assert "every cell, all 8 runs: actor.lr=-1.0 must be above 0" in capsys.readouterr().err


def test_a_recipe_is_found_here_or_beside_the_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "here"
    here.mkdir()
    path = write_study_file(tmp_path, recipe="recipe.yaml")
    monkeypatch.chdir(here)
    assert read_study_file(path).recipe == tmp_path / "recipe.yaml"
    assert len(plan_study(read_study_file(path))) == 8
    (here / "recipe.yaml").write_text("")
    assert read_study_file(path).recipe.resolve() == here / "recipe.yaml"  # as all paths, from the current folder first
    with pytest.raises(ConfigError, match=r"there is no recipe 'nowhere.yaml'"):
        plan(tmp_path, "study.recipe=nowhere.yaml")


def test_texts_of_axes_and_cells_are_as_written(tmp_path: Path):
    path = write_study_file(tmp_path)
    lines = path.read_text().partition("axes:")[0]
    path.write_text(
        f"{lines}axes:\n  trainer.project: [012, 10, no]\n  data.level_key: [1_0]\n"
        "cells:\n- when: {trainer.project: [012]}\n  set: {model.revision: 1e3}\n"
    )
    runs = plan_study(read_study_file(path, ["data.answer_key=0x10"]))
    assert [run.config.trainer.project for run in runs[:3]] == ["012", "10", "no"]
    assert [run.config.model.revision for run in runs[:3]] == ["1e3", None, None]
    assert {(run.config.data.level_key, run.config.data.answer_key) for run in runs} == {("1_0", "0x10")}
    words = ["study.axes={policy_loss: [{name: clip}], model.revision: [1e3]}", "study.cells=[]", "study.seeds=[3]"]
    (run,) = plan_study(read_study_file(path, words))
    assert (run.config.model.revision, run.config.policy_loss.name) == ("1e3", "clip")
