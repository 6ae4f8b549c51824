"""The fingerprint of what a run is trained on: contents count, places and spellings do not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from data_world import char_tokenizer, numbered_rows, run_config, write_rows
from tiny_recipe import write_model

from trainer.config import DataConfig
from trainer.data import TrainPrompts, fingerprint

Rows = list[dict[str, Any]]


def of(folder: Path, rows: Rows, name: str = "train.jsonl", **settings: Any) -> dict[str, str]:
    files = [write_rows(folder / name, rows)]
    data = DataConfig(**{"train_files": files, "train_batch_size": 2, **settings})
    prompts = TrainPrompts(run_config(data), char_tokenizer())
    return fingerprint(folder / "model", prompts.prompts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path


def test_places_names_and_layout_of_files_do_not_count(folder: Path, tmp_path: Path):
    rows = numbered_rows(4)
    one, two = write_rows(tmp_path / "one.jsonl", rows[:1]), write_rows(tmp_path / "two.jsonl", rows[1:])
    found = of(folder, rows)
    assert of(folder, [dict(reversed(row.items())) for row in rows], "elsewhere.jsonl") == found
    assert of(folder, [], "unused.jsonl", train_files=[one, two]) == found
    assert found["prompts"] == "4"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-1], rows[-1] | {"solution": "\\boxed{99}"}],
        lambda rows: [*rows[:-1], rows[-1] | {"level": "Level 5"}],
    ],
)
def test_every_row_and_column_counts(folder: Path, change: Any):
    rows = numbered_rows(4)
    assert of(folder, rows)["rows"] != of(folder, change(rows))["rows"]


def test_a_system_prompt_counts_where_it_changes_which_prompts_fit(folder: Path):
    """Ten prompts of 7 tokens and two of 8."""
    rows = numbered_rows(12)
    found, short = of(folder, rows), of(folder, rows, system_prompt="ab")
    assert found["rows"] == short["rows"] and found["tokens"] != short["tokens"]
    within = of(folder, rows, max_prompt_length=7)
    assert (within["prompts"], within["rows"] == found["rows"]) == ("10", False)


def test_a_model_is_its_configuration_and_its_weights(folder: Path):
    rows = numbered_rows(4)
    found = of(folder, rows)["model"]
    shutil.copytree(folder / "model", folder / "copy")
    (folder / "copy" / "README.md").write_text("a copy")
    prompts = TrainPrompts(
        run_config(DataConfig(train_files=[str(folder / "train.jsonl")], train_batch_size=2)), char_tokenizer()
    )
    assert fingerprint(folder / "copy", prompts.prompts)["model"] == found
    with (folder / "copy" / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x01")
    assert fingerprint(folder / "copy", prompts.prompts)["model"] != found
