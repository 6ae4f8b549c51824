"""Cells of a grid and their names; studies written to study.json and read back: records by step, gaps, mistakes."""

import json
from pathlib import Path

import pytest
from study_report_world import ITERATIONS, LOSS, plan_runs, two_losses, write_run
from tiny_study import AXES, write_study_file

from cfpo_hybrid.errors import DataError
from trainer.run.files import write_jsonl
from trainer.study.plan import new_study, plan_study
from trainer.study.study import (
    OPTIMIZER_STEPS,
    cell_label,
    cell_name,
    cells_of,
    read_study,
    run_name,
    value_label,
    write_study,
)
from trainer.study.study_file import read_study_file


def test_cells_are_every_combination_and_names_tell_them_apart():
    cells = cells_of({"policy_loss.name": ["clip", "cfpo"], "policy_loss.epsilon": [0.1, 0.2]})
    assert [run_name(cell, 3) for cell in cells] == [
        "clip-epsilon0.1-seed3",
        "clip-epsilon0.2-seed3",
        "cfpo-epsilon0.1-seed3",
        "cfpo-epsilon0.2-seed3",
    ]
    assert [run_name(cell, 0) for cell in cells_of({})] == ["seed0"]
    assert cell_name({"data.train_files": ["a/b.jsonl"], "actor.megatron.recompute": True}) == (
        "train_files_a_b.jsonl-recomputetrue"
    )


def test_labels():
    assert cell_label({LOSS: "cfpo", ITERATIONS: 4}) == "cfpo, iterations 4"
    assert value_label("policy_loss.epsilon", 0.1) == "epsilon 0.1"
    assert value_label("policy_loss", {"name": "cfpo", "epsilon": 0.1}) == "cfpo epsilon=0.1"
    assert value_label("algorithm.kl_in_reward", True) == "kl_in_reward true"


def test_records_join_both_logs(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5, 0.6], updates=3)
    (run,) = read_study(tmp_path).runs
    assert run.values("reward/mean") == {1: 0.5, 2: 0.6}
    assert run.values("val/accuracy") == {0: 0.25, 2: 0.6}
    assert run.values("actor/kl_k3") == pytest.approx({1: 0.1, 2: 0.1})  # the mean of 0, 0.1 and 0.2
    assert run.values(OPTIMIZER_STEPS) == {0: 0.0, 1: 3.0, 2: 6.0}
    assert run.finished


def test_a_step_s_own_line_goes_before_its_updates(tmp_path: Path):
    (path,) = plan_runs(tmp_path, {}, [({}, 1)])
    write_run(path, [0.5])
    write_jsonl(path / "metrics.jsonl", [{"step": 1, "actor/kl_k3": 7.0, "actor/entropy": None}])
    (run,) = read_study(tmp_path).runs
    assert run.values("actor/kl_k3") == {1: 7.0}
    assert run.values("actor/entropy") == {}


def test_gaps_name_every_run_that_lacks_steps(tmp_path: Path):
    two_losses(tmp_path)
    assert read_study(tmp_path).gaps() == ["cfpo-4-seed1: ends at step 3 of 6", "cfpo-4-seed2: not started"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"axes": {}}', "'runs' is None"),
        ('{"axes": {"a": 1}, "runs": []}', "the axis 'a' is 1"),
        ('{"axes": {}, "runs": [3]}', "the run 3 is no object"),
        ('{"axes": {"a": [1]}, "runs": [{"name": "x", "cell": {}, "seed": 1, "path": "x"}]}', "has no value for a"),
    ],
)
def test_a_malformed_study_is_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


def test_a_directory_without_study_json(tmp_path: Path):
    (tmp_path / "other.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="is no study directory"):
        read_study(tmp_path)


def test_study_json_lists_the_runs(tmp_path: Path):
    file = read_study_file(write_study_file(tmp_path))
    runs = plan_study(file)
    study = new_study(file, runs)
    write_study(study)
    assert read_study(file.output) == study
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    assert content["axes"] == AXES and content["seeds"] == [1, 2] and content["mode"] == "iso_sample"
    assert content["runs"][1] == {
        "name": "clip-iterations4-seed1",
        "cell": {"policy_loss.name": "clip", "algorithm.iterations": 4},
        "seed": 1,
        "path": "runs/clip-iterations4-seed1",
    }
    assert len(content["runs"]) == len(runs) == 8
