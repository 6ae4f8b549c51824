import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
from example_scripts import load_example

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.data.records import read_records

prepare_math = load_example("qwen2.5_math/prepare_math.py")


def problem(number, **changes):
    row = {"problem": f"{number}+1?", "level": "Level 2", "type": "Algebra", "solution": f"\\boxed{{{number + 1}}}"}
    return {name: value for name, value in (row | changes).items() if value is not None}


def write_folder(folder, problems):
    """MATH's original layout: one JSON file a problem, in a folder a subject."""
    for name, row in problems.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(row))
    return str(folder)


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare_math.py", *map(str, words)])
    return prepare_math.main()


def test_folders_and_parquet_become_files_that_the_trainer_reads(tmp_path, monkeypatch, capsys):
    train = write_folder(
        tmp_path / "MATH" / "train",
        {"geometry/10.json": problem(3), "algebra/10.json": problem(2), "algebra/9.json": problem(1)},
    )
    test = tmp_path / "math500.parquet"
    rows = [problem(4, type=None, subject="Number Theory", level=5, answer="5", unique_id="test/1.json")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), test)
    assert run(monkeypatch, "--train", train, "--test", test, "--output", tmp_path / "out") == 0
    config = DataConfig(train_files=[])
    written = read_records([str(tmp_path / "out" / "train.jsonl")], config)
    assert [record.problem for record in written] == ["1+1?", "2+1?", "3+1?"]  # 9 before 10
    (row,) = read_records([str(tmp_path / "out" / "test.jsonl")], config)
    assert row.ground_truth == "\\boxed{5}" and row.extra == {"level": "Level 5", "type": "Number Theory"}
    assert "train.jsonl: 3 problems" in capsys.readouterr().out


def test_rows_without_a_boxed_answer_are_left_out_and_counted(tmp_path):
    rows = {"algebra/1.json": problem(1), "algebra/2.json": problem(2, solution="It is 3.")}
    said = prepare_math.write(write_folder(tmp_path / "train", rows), tmp_path / "train.jsonl")
    assert "1 problems" in said and "1 left out without a boxed answer" in said
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": ', r"1\.json is not JSON"),
        ("[]", r"1\.json is not a JSON object but a list"),
        ('{"problem": "1+1?", "level": "Level 1", "type": "Algebra"}', "has no column solution; it has problem, level"),
        ('{"problem": "1+1?", "solution": "2", "level": "Level 1"}', "has no column type or subject"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    (tmp_path / "1.json").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare_math.write(str(tmp_path), tmp_path / "out.jsonl")


def test_a_source_that_is_not_there_exits_with_2(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--train", tmp_path / "gone", "--output", tmp_path) == 2
    assert "gone' does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(monkeypatch, "--train", tmp_path / "empty", "--output", tmp_path) == 2
    assert "has no .json file below it" in capsys.readouterr().err
