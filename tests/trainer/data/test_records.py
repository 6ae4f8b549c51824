import pyarrow
import pyarrow.parquet
import pytest
from data_world import numbered_rows, write_rows

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.data.files import HubSplit, open_source
from trainer.data.records import Record, read_records

DATA = DataConfig(train_files=[])


def record(problem, ground_truth, extra):
    return Record(problem, ground_truth, extra, [{"role": "user", "content": problem}])


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_jsonl_and_parquet_and_a_data_set_give_the_same_records(tmp_path):
    rows = numbered_rows(5)
    jsonl = write_rows(tmp_path / "train.jsonl", rows)
    parquet = write_parquet(tmp_path / "train.parquet", rows)
    expected = [record(r["problem"], r["solution"], {"level": r["level"], "type": r["type"]}) for r in rows]
    assert read_records([jsonl], DATA) == expected
    assert read_records([parquet], DATA) == expected
    assert read_records([jsonl, parquet], DATA) == expected * 2


def test_a_split_of_a_data_set_is_read_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "my_set"
    folder.mkdir()
    write_rows(folder / "train.jsonl", numbered_rows(5))
    write_rows(folder / "test.jsonl", numbered_rows(3))
    assert [r.problem for r in read_records([f"hub:{folder}:train"], DATA)] == ["p0", "p1", "p2", "p3", "p4"]
    assert [r.problem for r in read_records([f"hub:{folder}:test[:2]"], DATA)] == ["p0", "p1"]
    with pytest.raises(DataError, match=r"my_set:validation cannot be loaded: .*validation"):
        read_records([f"hub:{folder}:validation"], DATA)


def test_the_parts_of_a_hub_id():
    assert open_source("hub:openai/gsm8k:main:train") == HubSplit("openai/gsm8k", "main", "train")
    assert open_source("hub:EleutherAI/math:test[10:20]") == HubSplit("EleutherAI/math", None, "test[10:20]")
    for malformed in ("hub:openai/gsm8k", "hub:", "hub:a:b:c:d", "hub::train"):
        with pytest.raises(DataError, match="hub:NAME:CONFIG:SPLIT"):
            open_source(malformed)


def test_a_file_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    write_rows(tmp_path / "train.jsonl", numbered_rows(1))
    with pytest.raises(DataError, match=r"does not exist; .* has train\.jsonl"):
        open_source(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="a Hugging Face data set is written hub:NAME:SPLIT"):
        open_source("openai/gsm8k")


def test_an_unknown_extension_lists_the_known_ones(tmp_path):
    (tmp_path / "train.csv").write_text("problem,answer\n1+1,2\n")
    with pytest.raises(DataError, match=r"'\.csv'; \.jsonl and \.parquet files can be read"):
        open_source(str(tmp_path / "train.csv"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "1+1", ', r"line 4 is not JSON \(.*\): '\{\"problem\": \"1\+1\",'"),
        ('["1+1", "2"]', "line 4 is not a JSON object but a list"),
        ('{"question": "1+1", "answer": "2"}', r"line 4 lacks the column 'problem' .*; it has question, answer"),
        ('{"problem": "1+1"}', r"line 4 lacks the column 'answer' .* or 'solution' .*; it has problem"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    good = '{"problem": "1+1", "answer": "2"}'
    (tmp_path / "train.jsonl").write_text(f"{good}\n\n{good}\n{line}\n")  # the blank line counts, but is no row
    with pytest.raises(DataError, match=message):
        read_records([str(tmp_path / "train.jsonl")], DATA)


def test_both_missing_columns_are_named_at_once(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", [{"query": "1+1", "reply": "2"}])
    with pytest.raises(DataError, match=r"name the columns in data\.problem_key and data\.answer_key"):
        read_records([path], DATA)
    renamed = DataConfig(train_files=[], problem_key="query", answer_key="reply")
    assert read_records([path], renamed) == [record("1+1", "2", {})]


def test_the_answer_is_preferred_and_the_solution_stays_in_extra(tmp_path):
    rows = [{"problem": "1+1", "solution": "\\boxed{2}", "answer": 2}, {"problem": "1+2", "solution": "\\boxed{3}"}]
    records = read_records([write_rows(tmp_path / "train.jsonl", rows)], DATA)
    assert records == [record("1+1", "2", {"solution": "\\boxed{2}"}), record("1+2", "\\boxed{3}", {})]


def test_extra_holds_json_values_only(tmp_path):
    from datetime import date

    row = {"problem": "1+1", "answer": "2", "day": date(2024, 1, 2), "tags": ["a", None], "score": float("nan")}
    (only,) = read_records([write_parquet(tmp_path / "train.parquet", [row])], DATA)
    assert only.extra == {"day": "2024-01-02", "tags": ["a", None], "score": None}


def test_empty_and_broken_files(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "latin.jsonl").write_bytes('{"problem": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="has no rows"):
        read_records([str(tmp_path / "empty.jsonl")], DATA)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_records([str(tmp_path / "broken.parquet")], DATA)
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_records([str(tmp_path / "latin.jsonl")], DATA)


def test_a_limit_takes_the_first_rows(tmp_path):
    path = write_rows(tmp_path / "train.jsonl", numbered_rows(5))
    assert [r.problem for r in read_records([path, path], DATA, limit=6)] == ["p0", "p1", "p2", "p3", "p4", "p0"]
