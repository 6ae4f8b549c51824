"""Files of every accepted form, with and without keys, and headers that are refused as training would refuse the rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from data_world import char_tokenizer, run_config, write_rows
from hypothesis import given
from hypothesis import strategies as st

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.data import TrainPrompts, inspect_files
from trainer.data.columns import columns_of_row
from trainer.data.inspect import describe_files
from trainer.data.records import read_records, record_of
from workers.reward.answers import last_boxed

DATA = DataConfig(train_files=[], train_batch_size=1)
USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
WORKED = {"role": "assistant", "content": "So \\boxed{2}."}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [USER],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7, "split": "train"},
}

FORMS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "problem and answer": ({"problem": "1+1?", "answer": "2"}, "2", {}),
    "problem and solution": ({"problem": "1+1?", "solution": "\\boxed{2}"}, "\\boxed{2}", {}),
    "question and answer": ({"question": "1+1?", "answer": "2"}, "2", {}),
    "GSM8K": (
        {"question": "1+1?", "answer": "1 + 1 is <<1+1=2>>2.\n#### 1,234"},
        "1,234",
        {"answer": "1 + 1 is <<1+1=2>>2.\n#### 1,234"},
    ),
    "verl": (VERL, "2", {key: value for key, value in VERL.items() if key != "prompt"}),
    "chat and answer": ({"messages": [USER], "answer": "2"}, "2", {}),
    "solved chat": ({"messages": [USER, WORKED]}, "So \\boxed{2}.", {"messages": [USER, WORKED]}),
    "solved chat and answer": (
        {"messages": [USER, WORKED], "answer": "2"},
        "2",
        {"messages": [USER, WORKED]},
    ),
    "prompt and solution": ({"prompt": "1+1?", "solution": "\\boxed{2}"}, "\\boxed{2}", {}),
    # The first form that fits whole is taken.
    "of two": ({"problem": "1+1?", "prompt": "x", "messages": [USER], "answer": "2"}, "2", None),
    "not whole": ({"prompt": "x", "messages": [USER, WORKED]}, "So \\boxed{2}.", None),
    "nulls": ({"problem": None, "question": "1+1?", "answer": "2"}, "2", {"problem": None}),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "answer": "2"}, "2", {}),
}


def write(path, rows, kind):
    if kind == "jsonl":
        return write_rows(path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "rows.parquet")
    return str(path / "rows.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_recognised(tmp_path, form, kind):
    row, truth, extra = FORMS[form]
    file = write(tmp_path, [row], kind)
    (record,) = read_records([file], DATA)
    assert (record.problem, record.ground_truth, record.messages) == ("1+1?", truth, [USER])
    if extra is not None:
        assert record.extra == extra
    assert list(inspect_files(replace(DATA, train_files=[file]))) == []
    (line,) = describe_files(replace(DATA, train_files=[file]))
    assert line.startswith(f"{file}: question from '")


def test_each_file_is_recognised_by_itself(tmp_path):
    math = write_rows(tmp_path / "math.jsonl", [{"problem": "1+1?", "solution": "\\boxed{2}", "level": "Level 1"}])
    gsm8k = write_rows(tmp_path / "gsm8k.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    assert [record.ground_truth for record in read_records([math, gsm8k], DATA)] == ["\\boxed{2}", "2"]
    config = replace(DATA, train_files=[math], val_files=[gsm8k, math])
    assert list(inspect_files(config)) == []
    assert list(describe_files(config)) == [
        f"{math}: question from 'problem', answer from 'solution'",
        f"{gsm8k}: question from 'question', answer from 'answer'",
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_key_wins_over_what_is_recognised(tmp_path, kind):
    row = VERL | {"problem": "other", "answer": "3", "a.b": "4", "a": {"b": "5", "c.d": "6"}}
    file = write(tmp_path, [row], kind)

    def read(**keys):
        (record,) = read_records([file], replace(DATA, **keys))
        return record.problem, record.ground_truth

    assert read() == ("other", "3")
    assert read(problem_key="prompt") == ("1+1?", "3")
    assert read(problem_key="prompt", answer_key="reward_model.ground_truth") == ("1+1?", "2")
    assert read(answer_key="extra_info.index") == ("other", "7")
    assert read(answer_key="a.b") == ("other", "4")  # a column of that very name
    assert read(answer_key="a.c.d") == ("other", "6")
    assert read(answer_key="nowhere", solution_key="ability") == ("other", "math")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_names_that_are_not_there(tmp_path, kind):
    file = write(tmp_path, [VERL], kind)
    for keys, message in (
        ({"problem_key": "query"}, r"lacks the column 'query' \(data\.problem_key\); it has data_source, prompt"),
        ({"answer_key": "reward_model.truth"}, r"'reward_model\.truth' \(data\.answer_key\) or 'solution'"),
        ({"answer_key": "reward_model"}, "column 'reward_model'"),
    ):
        with pytest.raises(DataError, match=message):
            read_records([file], replace(DATA, **keys))
        (problem,) = inspect_files(replace(DATA, train_files=[file], **keys))
        assert problem.keys == ("data.train_files",)
    with pytest.raises(DataError, match=r"none of 'problem', 'prompt', 'question', 'messages' has values; it has q, a"):
        read_records([write(tmp_path, [{"q": "1+1?", "a": "2"}], kind)], DATA)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "must be a text, or a list of messages"),
        ([SYSTEM], "must end with a user's message"),
        ([WORKED], "must end with a user's message"),
        ([{"role": "human", "content": "x"}], "message 1 must have a role of system, developer, user"),
        ([{"from": "human", "value": "x"}], "message 1 must have a role of"),
        (["1+1?"], "message 1 must have a role of"),
        ([USER, {"role": "assistant", "content": None}], "message 2: its content must be a text, it is None"),
        ([{"role": "user", "content": " "}], "must be a text, it is ' '"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "has a part that is no text"),
        ([{"role": "user", "content": []}], "its content must be a text"),
    ],
)
def test_chats_that_cannot_be_answered(tmp_path, chat, message):
    file = write_rows(tmp_path / "rows.jsonl", [{"messages": chat, "answer": "2"}])
    with pytest.raises(DataError, match=rf"rows\.jsonl line 1: column 'messages'.*{message}"):
        read_records([file], DATA)


def test_the_chat_that_is_answered(tmp_path):
    config = replace(DATA, system_prompt="Think.", examples=[USER, WORKED])
    think = {"role": "system", "content": "Think."}
    again = {"role": "user", "content": "And 2+2?"}
    rows = [{"messages": chat, "answer": "4"} for chat in ([again], [SYSTEM, again], [USER, WORKED, again, WORKED])]
    chats = [record.messages for record in read_records([write_rows(tmp_path / "rows.jsonl", rows)], config)]
    assert chats == [
        [think, USER, WORKED, again],
        [SYSTEM, USER, WORKED, again],  # the row's own system message
        [think, USER, WORKED, USER, WORKED, again],
    ]


TYPES: dict[str, tuple[pyarrow.DataType, Any]] = {
    "text": (pyarrow.string(), "2"),
    "large text": (pyarrow.large_string(), "2"),
    "text view": (pyarrow.string_view(), "2"),
    "dictionary": (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "2"),
    "int": (pyarrow.int64(), 2),
    "uint": (pyarrow.uint64(), 2**64 - 1),
    "float": (pyarrow.float32(), 0.1),
    "decimal": (pyarrow.decimal128(5, 2), 2),
    "bool": (pyarrow.bool_(), True),
    "null": (pyarrow.null(), None),
    "date": (pyarrow.date32(), 1),
    "bytes": (pyarrow.binary(), b"2"),
    "texts": (pyarrow.list_(pyarrow.string()), ["2"]),
    "struct": (pyarrow.struct({"x": pyarrow.string()}), {"x": "2"}),
    "chat": (pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})), [USER, WORKED]),
    "large chat": (
        pyarrow.large_list(pyarrow.struct({"content": pyarrow.large_string(), "role": pyarrow.string()})),
        [USER, WORKED],
    ),
    "parts": (
        pyarrow.list_(
            pyarrow.struct(
                {"role": pyarrow.string(), "content": pyarrow.list_(pyarrow.struct({"text": pyarrow.string()}))}
            )
        ),
        [{"role": "user", "content": [{"text": "1+1?"}]}, {"role": "assistant", "content": [{"text": "2"}]}],
    ),
    "chat of numbers": (
        pyarrow.list_(pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.int64()})),
        [{"role": "user", "content": 2}],
    ),
    "human": (
        pyarrow.list_(pyarrow.struct({"from": pyarrow.string(), "value": pyarrow.string()})),
        [{"from": "human", "value": "1+1?"}],
    ),
    "map": (pyarrow.map_(pyarrow.string(), pyarrow.string()), [("role", "user")]),
}


@given(
    question_name=st.sampled_from(["problem", "question", "prompt", "messages"]),
    question=st.sampled_from(sorted(TYPES)),
    answers=st.dictionaries(
        st.sampled_from(["answer", "solution", "reward_model.ground_truth"]), st.sampled_from(sorted(TYPES))
    ),
)
def test_a_header_is_refused_where_its_rows_would_be(tmp_path_factory, question_name, question, answers):
    arrays = {name: pyarrow.array([TYPES[kind][1]], TYPES[kind][0]) for name, kind in answers.items()}
    table = pyarrow.table({question_name: pyarrow.array([TYPES[question][1]], TYPES[question][0]), **arrays})
    path = tmp_path_factory.getbasetemp() / "types.parquet"
    pyarrow.parquet.write_table(table, path)
    found = list(inspect_files(replace(DATA, train_files=[str(path)])))
    # The rows alone, as a data set of the hub gives them: no header is asked.
    refused = _refusal_of_rows(table)
    assert bool(found) == bool(refused), (found, refused)


def _refusal_of_rows(table: pyarrow.Table) -> str:
    (values,) = table.to_pylist()
    try:
        record_of(("row 1", values), columns_of_row("row 1", values, DATA), DATA)
    except DataError as error:
        return str(error)
    return ""


def test_a_level_in_a_nested_column(tmp_path):
    file = write(tmp_path, [VERL], "parquet")
    config = replace(DATA, train_files=[file], curriculum="order", level_key="extra_info.index")
    assert list(inspect_files(config)) == []
    (problem,) = inspect_files(replace(config, level_key="extra_info.level"))
    assert "goes by the column 'extra_info.level'" in problem.message


def test_the_rows_of_the_page_are_accepted_and_reach_a_reward_function(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in page.splitlines() if line.startswith('    {"')]
    assert len(rows) == 6
    files = [write_rows(tmp_path / f"{number}.jsonl", [row]) for number, row in enumerate(rows)]
    config = run_config(replace(DATA, train_files=files, train_batch_size=6, shuffle=False), group_size=1)
    assert list(inspect_files(config.data)) == []
    batch = TrainPrompts(config, char_tokenizer()).draw(0, 6, step=0)
    assert set(batch["problem"]) == {"What is 1+1?"}
    assert [last_boxed(truth) or truth for truth in batch["ground_truth"]] == ["2"] * 6
    verl = rows[-1]
    assert batch["extra"][5] == {key: verl[key] for key in ("data_source", "reward_model", "extra_info")}
