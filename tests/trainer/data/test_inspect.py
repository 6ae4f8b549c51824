from dataclasses import replace

import pyarrow
import pyarrow.parquet
from data_world import numbered_rows, write_rows

from trainer.config import DataConfig
from trainer.data import inspect_files


def messages(config):
    return [problem.message for problem in inspect_files(config)]


def test_good_files_have_no_problem(tmp_path):
    jsonl = write_rows(tmp_path / "train.jsonl", numbered_rows(3))
    parquet = str(tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(numbered_rows(2)), parquet)
    config = DataConfig(train_files=[jsonl, parquet], val_files=[parquet], train_batch_size=5)
    assert messages(config) == []
    (problem,) = inspect_files(replace(config, train_batch_size=6))
    assert "have 5 rows, fewer than one batch of data.train_batch_size=6" in problem.message
    assert problem.keys == ("data.train_files", "data.train_batch_size")


def test_everything_wrong_is_said_at_once(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{')
    parquet = str(tmp_path / "test.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"query": ["1+1"], "answer": ["2"]}), parquet)
    config = DataConfig(
        train_files=[str(tmp_path / "gone.jsonl"), str(tmp_path / "bad.jsonl"), "hub:openai/gsm8k"],
        val_files=[parquet],
        chat_template=str(tmp_path / "gone.jinja"),
    )
    found = messages(config)
    assert len(found) == 5
    for part, message in zip(
        (
            "gone.jinja",
            "gone.jsonl' does not exist",
            "line 2 is not JSON",
            "hub:NAME",
            "query",
        ),
        found,
        strict=True,
    ):
        assert part in message


def test_a_data_set_of_the_hub_is_not_fetched():
    assert messages(DataConfig(train_files=["hub:nobody/nothing:train"])) == []


def test_a_curriculum_without_levels(tmp_path):
    config = DataConfig(train_files=[write_rows(tmp_path / "train.jsonl", numbered_rows(3))], train_batch_size=1)
    assert messages(replace(config, curriculum="order")) == []
    (message,) = messages(replace(config, curriculum="order", level_key="difficulty"))
    assert "goes by the column 'difficulty' (data.level_key)" in message
    (message,) = messages(replace(config, curriculum="order", level_key="type"))  # texts without a number
    assert "has no level there" in message


def test_no_training_file(tmp_path):
    assert messages(DataConfig(train_files=[])) == ["data.train_files is empty; name at least one file to train on"]


def test_the_files_of_every_validation_set_are_inspected(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", numbered_rows(3))
    sets = {"math": [train], "gone": [str(tmp_path / "gone.jsonl"), train], "off": []}
    (problem,) = inspect_files(DataConfig(train_files=[train], train_batch_size=1, val_sets=sets))
    assert problem.keys == ("data.val_sets.gone",)
    assert problem.message.startswith("data.val_sets.gone: data file")
