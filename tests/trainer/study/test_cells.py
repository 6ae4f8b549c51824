"""Cells of a grid, and what they and their values are called."""

from study_report_world import ITERATIONS, LOSS

from trainer.study.cells import cell_label, cell_name, cells_of, run_name, value_label


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
