"""Rows that are not as they should be: one line that names the file and the row; and texts that come through unchanged."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest
from data_world import write_rows
from hypothesis import given
from hypothesis import strategies as st

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.data import inspect_files
from trainer.data.records import read_records
from workers.reward.answers import quick_verdict

DATA = DataConfig(train_files=[], train_batch_size=1)
GOOD = b'{"problem": "1+1", "answer": "2"}'

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "half a character": (rb'{"problem": "a \ud835", "answer": "2"}', r"holds half a character \(\\ud835 without"),
    "half in another column": (rb'{"problem": "1+1", "answer": "2", "x": ["\uDC00"]}', "holds half a character"),
    "not UTF-8": ('{"problem": "é", "answer": "2"}'.encode("latin-1"), r"is not UTF-8 text \(bytes e9\)"),
    "a BOM": (b"\xef\xbb\xbf" + GOOD, "begins with a byte order mark"),
    "nested": (
        b'{"problem": "1+1", "answer": "2", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested too deeply",
    ),
    "nested less": (
        b'{"problem": "1+1", "answer": "2", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
        "nested over 100 levels",
    ),
    "a huge number": (b'{"problem": "1+1", "answer": ' + b"1" * 5000 + b"}", "a number of thousands of digits"),
    "two values": (b'{"problem": "1+1", "answer": "2", "answer": "3"}', "has two values of 'answer'"),
    "two values within": (b'{"problem": "1+1", "answer": "2", "x": {"y": 1, "y": 1}}', "has two values of 'y'"),
    "cut off": (b'{"problem": "1+1", "ans', "is not JSON"),
    "NaN": (b'{"problem": "1+1", "answer": NaN}', "has no answer in the column 'answer'.*: answer is nan"),
    "Infinity": (b'{"problem": "1+1", "answer": -Infinity}', "has no answer .*: answer is -inf"),
    "1e999": (b'{"problem": "1+1", "answer": 1e999}', "has no answer .*: answer is inf"),
    "null": (b'{"problem": "1+1", "answer": null}', "has no answer .*: answer is None"),
    "blank": (b'{"problem": "1+1", "answer": " "}', "has no answer .*: answer is ' '"),
    "true": (b'{"problem": "1+1", "answer": true}', "column 'answer' must be a text or a number, it is True"),
    "a list": (b'{"problem": "1+1", "answer": ["2"]}', r"column 'answer' must be a text or a number, it is \['2'\]"),
    "a number as a problem": (
        b'{"problem": 3, "answer": "2"}',
        "column 'problem' must be a text, or a list of messages",
    ),
    "no final answer": (b'{"problem": "1+1", "answer": "so\\n####"}', "has nothing behind its last ####"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_in_one_line(tmp_path, name):
    line, message = BAD_LINES[name]
    file = tmp_path / "train.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=rf"train\.jsonl line 3.*{message}") as caught:
        read_records([str(file)], DATA)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 400
    (problem,) = inspect_files(DataConfig(train_files=[str(file)], train_batch_size=1))
    assert str(caught.value) in problem.message


def test_utf16_is_told(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD.decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1 is not UTF-8 text .*UTF-16, save it as UTF-8"):
        read_records([str(tmp_path / "train.jsonl")], DATA)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_byte_order_mark_at_the_beginning_and_any_end_of_lines(tmp_path, end):
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD + end + end + GOOD + end)
    assert [record.ground_truth for record in read_records([str(tmp_path / "train.jsonl")], DATA)] == ["2", "2"]


@given(problem=st.text(min_size=1).filter(str.strip), escaped=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_any_text_comes_through_unchanged(tmp_path_factory, problem, escaped, end):
    problem += "\u2028\u2029\x85\x1c\U0001d54f"  # what str.splitlines takes for ends of lines, and a pair of halves
    line = json.dumps({"problem": problem, "answer": problem}, ensure_ascii=escaped)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes((line + end).encode() * 2)
    assert [(record.problem, record.ground_truth) for record in read_records([str(path)], DATA)] == [
        (problem, problem)
    ] * 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "ground_truth", "a.b"]), inner, max_size=3
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": inner})
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(["problem", "prompt", "question", "messages", "answer", "solution", "reward_model", "x"])


@given(
    good=st.sampled_from(
        [{}, {"problem": "1+1", "answer": "2"}, {"prompt": "1+1", "reward_model": {"ground_truth": 2}}]
    ),
    row=st.dictionaries(NAMES, VALUES, max_size=3),
)
def test_any_row_is_read_or_named(tmp_path_factory, good, row):
    row = good | row
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    found = list(inspect_files(DataConfig(train_files=[str(path)], train_batch_size=1)))
    try:
        (record,) = read_records([str(path)], DATA)
    except DataError as error:
        assert "rows.jsonl line 1" in str(error) and "\n" not in str(error) and len(found) == 1
        return
    assert not found and record.problem.strip() and record.ground_truth.strip()
    assert record.messages[-1] == {"role": "user", "content": record.problem}
    json.dumps(record.extra, allow_nan=False).encode()


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("array", "text", "responses"),
    [
        (pyarrow.array([5.0]), "5", ["5", "5.0"]),
        (pyarrow.array([-0.0]), "0", ["0"]),
        (pyarrow.array([0.1], pyarrow.float32()), "0.1", ["0.1", "1/10"]),
        (pyarrow.array([0.1], pyarrow.float16()), "0.1", ["0.1"]),
        (pyarrow.array([1e-5]), "0.00001", ["0.00001", "1/100000", "10^{-5}"]),
        (pyarrow.array([1e23]), "1" + "0" * 23, ["1" + "0" * 23, "10^{23}"]),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), "18446744073709551615", ["18446744073709551615"]),
        (pyarrow.array(["1.50"]).cast(pyarrow.decimal128(38, 4)), "1.5000", ["1.5", "3/2"]),
    ],
)
def test_a_number_as_an_answer(tmp_path, array, text, responses):
    (record,) = read_records([parquet(tmp_path / "train.parquet", problem=["1+1"], answer=array)], DATA)
    assert record.ground_truth == text
    assert [quick_verdict(record.ground_truth, response) for response in responses] == [True] * len(responses)
    assert quick_verdict(record.ground_truth, "7") is False


def test_numbers_of_jsonl_as_answers(tmp_path):
    rows = [{"problem": "1+1", "answer": value} for value in (2, 5.0, 0.1, 1e-5, 10**40)]
    truths = [record.ground_truth for record in read_records([write_rows(tmp_path / "train.jsonl", rows)], DATA)]
    assert truths == ["2", "5", "0.1", "0.00001", "1" + "0" * 40]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_an_answer_that_is_no_number_is_null(tmp_path, value):
    answers = pyarrow.array([value, 2.0], from_pandas=False)
    file = parquet(tmp_path / "train.parquet", problem=["1+1", "1+1"], answer=answers, solution=["\\boxed{2}", None])
    records = read_records([file], DATA)
    assert [record.ground_truth for record in records] == ["\\boxed{2}", "2"]
    assert records[0].extra == {"answer": None}  # as JSON can hold it
    alone = parquet(tmp_path / "alone.parquet", problem=["1+1", "1+1"], answer=pyarrow.array([2.0, value]))
    with pytest.raises(DataError, match=r"alone\.parquet row 2 has no answer in the column 'answer'"):
        read_records([alone], DATA)


def test_words_that_mean_none(tmp_path):
    rows = [{"problem": "1+1", "answer": answer, "solution": "\\boxed{2}"} for answer in ("N/A", " - ", -1, "3", "")]
    file = write_rows(tmp_path / "train.jsonl", rows)
    truths = [record.ground_truth for record in read_records([file], DATA)]
    assert truths == ["N/A", " - ", "-1", "3", "\\boxed{2}"]
    config = DataConfig(train_files=[], none_values=["N/A", "-", "-1"])
    truths = [record.ground_truth for record in read_records([file], config)]
    assert truths == ["\\boxed{2}"] * 3 + ["3", "\\boxed{2}"]
    alone = write_rows(tmp_path / "alone.jsonl", [{"problem": "1+1", "answer": "N/A"}])
    with pytest.raises(DataError, match=r"line 1 has no answer .*: answer is 'N/A'"):
        read_records([alone], config)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1 + 1 = 2\n#### 2", "2"),
        ("#### 2 #### 3 ", "3"),
        ("#### Step 1\n1 + 1\n#### Step 2\nso \\boxed{2}", "#### Step 1\n1 + 1\n#### Step 2\nso \\boxed{2}"),
        ("so \\boxed{2}\n#### Done", "so \\boxed{2}\n#### Done"),
        ("\\boxed{1}\n#### \\boxed{2}", "\\boxed{2}"),
    ],
)
def test_the_final_answer_of_a_worked_solution(tmp_path, text, answer):
    for name in ("answer", "solution"):
        (record,) = read_records([write_rows(tmp_path / "train.jsonl", [{"problem": "1+1", name: text}])], DATA)
        assert record.ground_truth == answer
        assert record.extra == ({} if answer == text else {name: text})


def test_rows_of_parquet_that_cannot_be_read(tmp_path):
    offsets = pyarrow.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 2, 4)))
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, pyarrow.py_buffer(b"ok\xff\xfe")])
    file = parquet(tmp_path / "bytes.parquet", problem=texts, answer=["1", "2"])
    with pytest.raises(DataError, match=r"bytes\.parquet row 2: column 'problem' cannot be read: .*utf-8"):
        read_records([file], DATA)
    times = pyarrow.array([0, 9 * 10**18], pyarrow.timestamp("us"))
    file = parquet(tmp_path / "times.parquet", problem=["a", "b"], answer=["1", "2"], time=times)
    with pytest.raises(DataError, match=r"times\.parquet row 2: column 'time' cannot be read: date value out of range"):
        read_records([file], DATA)


def test_a_damaged_parquet_file(tmp_path):
    file = parquet(tmp_path / "train.parquet", problem=[f"problem {n}" for n in range(5000)], answer=["1"] * 5000)
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    content[200:2000] = bytes(1800)
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet (cannot be read as parquet|row \d+)"):
        read_records([file], DATA)


def test_headers_of_parquet_that_cannot_be_used(tmp_path):
    names = ["problem", "problem", "answer"]
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=names)
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    nothing = parquet(tmp_path / "nothing.parquet", problem=["a"], answer=pyarrow.nulls(1), solution=pyarrow.nulls(1))
    numbers = parquet(tmp_path / "numbers.parquet", problem=[1], answer=["1"])
    dates = parquet(tmp_path / "dates.parquet", problem=["a"], answer=[datetime.date(2024, 1, 2)])
    files = [str(tmp_path / "twice.parquet"), nothing, numbers, dates]
    parts = [
        "twice.parquet has two columns named problem",
        "nothing.parquet lacks the column 'answer'",
        "numbers.parquet: column 'problem' holds int64",
        "dates.parquet: column 'answer' holds date32[day]; an answer is a text or a number",
    ]
    found = [problem.message for problem in inspect_files(DataConfig(train_files=files, train_batch_size=1))]
    for part, message in zip(parts, found, strict=True):
        assert part in message
    for file in files:
        with pytest.raises(DataError):
            read_records([file], DATA)


def test_short_floats_in_nested_columns_keep_their_decimals(tmp_path):
    kind = pyarrow.struct({"x": pyarrow.list_(pyarrow.float32()), "y": pyarrow.float64()})
    nested = pyarrow.array([{"x": [0.1, None], "y": 0.2}, None], kind)
    file = parquet(tmp_path / "train.parquet", problem=["a", "b"], answer=["1", "2"], nested=nested)
    extras = [record.extra["nested"] for record in read_records([file], DATA)]
    assert extras == [{"x": [0.1, None], "y": 0.2}, None]
