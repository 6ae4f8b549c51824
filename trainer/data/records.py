"""Rows become records: the chat that is answered, what its answer is compared with, and everything else."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import JsonValue
from trainer.config import DataConfig
from trainer.data.columns import Columns, columns_of_row, columns_of_schema, value_at
from trainer.data.files import Parquet, Row, open_source

Message = dict[str, str]
"""One turn of a chat: its ``role`` and its ``content``."""

ROLES = ("system", "developer", "user", "assistant", "tool")
FINAL_ANSWER = "####"
"""What GSM8K writes between a worked solution and its final answer."""
DEEPEST = 100
"""Levels that a further column may be nested; rows are packed and written by functions that call themselves."""


@dataclass(frozen=True, slots=True)
class Record:
    """One problem.

    Args:
        problem: the question: the last user's message of the chat.
        ground_truth: its answer, or else its worked solution.
        extra: the row's other columns as JSON values, e.g. ``{"level": "Level 3", "type": "Algebra"}``.
        messages: the whole chat that is answered, system message and examples included; it ends with the question.
    """

    problem: str
    ground_truth: str
    extra: dict[str, JsonValue]
    messages: list[Message]


def read_records(files: Sequence[str], config: DataConfig, limit: int | None = None) -> list[Record]:
    """The records of all files, in order.

    Args:
        files: paths and ``hub:`` ids.
        config: names of the columns.
        limit: only the first so many.

    Raises:
        DataError: a file that cannot be read or has no row, or a row without its columns.
    """
    records: list[Record] = []
    for file in files:
        before = len(records)
        source = open_source(file)
        columns = columns_of_schema(file, source.schema, config) if isinstance(source, Parquet) else None
        for row in source.rows():
            if limit is not None and len(records) >= limit:
                return records
            columns = columns or columns_of_row(*row, config)
            records.append(record_of(row, columns, config))
        if len(records) == before:
            raise DataError(f"data file '{file}' has no rows")
    return records


def record_of(row: Row, columns: Columns, config: DataConfig) -> Record:
    """The record of a row.

    Raises:
        DataError: no question or no answer that can be trained on; the message names the row and the column.
    """
    place, values = row
    question = value_at(values, columns.question)
    if question is None and columns.question not in values:
        raise DataError(f"{place} lacks the column '{columns.question}' (data.problem_key); it has {', '.join(values)}")
    chat, worked = _chat(question, f"{place}: column '{columns.question}'")
    truth, source = _ground_truth(row, columns, config.none_values or (), worked)
    # A column of which only a part is used stays in extra as a whole.
    used = {columns.question} if len(chat) == 1 and worked is None else set()
    if source != columns.question and (not isinstance(values.get(source), str) or values[source] == truth):
        used.add(source)
    try:
        extra = {name: _json(value) for name, value in values.items() if name not in used}
    except RecursionError:
        raise DataError(f"{place} has a column that is nested over {DEEPEST} levels deep") from None
    return Record(chat[-1]["content"], truth, extra, _in_full(chat, config))


def _in_full(chat: list[Message], config: DataConfig) -> list[Message]:
    """The chat behind its system message and the examples; a system message of its own comes before the setting's."""
    system, turns = (chat[:1], chat[1:]) if chat[0]["role"] in ("system", "developer") else ([], chat)
    if not system and config.system_prompt:
        system = [{"role": "system", "content": config.system_prompt}]
    return [*system, *(config.examples or ()), *turns]


def _chat(value: Any, place: str) -> tuple[list[Message], str | None]:
    """The messages up to the question, and the assistant's message behind it, if there is one."""
    if isinstance(value, str):
        chat = [{"role": "user", "content": value}]
    elif isinstance(value, list) and value:
        chat = [_message(item, f"{place}, message {number}") for number, item in enumerate(value, start=1)]
    else:
        raise DataError(f"{place} must be a text, or a list of messages with role and content, it is {_shown(value)}")
    worked = chat.pop()["content"] if chat[-1]["role"] == "assistant" else None
    if not chat or chat[-1]["role"] != "user":
        raise DataError(f"{place} must end with a user's message, or with one and the assistant's answer to it")
    if not chat[-1]["content"].strip():
        raise DataError(f"{place} must be a text, it is {_shown(chat[-1]['content'])}")
    return chat, worked


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, Mapping) or item.get("role") not in ROLES:
        raise DataError(f"{place} must have a role of {', '.join(ROLES)} and a content, it is {_shown(item)}")
    content = item.get("content")
    if isinstance(content, list) and content:
        content = "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise DataError(f"{place}: its content must be a text, it is {_shown(content)}")
    return {"role": item["role"], "content": content}


def _part(part: Any, place: str) -> str:
    """The text of a part of a message."""
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str) or part.get("type", "text") != "text":
        raise DataError(f"{place} has a part that is no text, which cannot be trained on: {_shown(part)}")
    return text


def _ground_truth(row: Row, columns: Columns, none_values: Collection[str], worked: str | None) -> tuple[str, str]:
    """The first of answer, solution and the assistant's message that is there, and the column it comes from."""
    place, values = row
    for key in (columns.answer, columns.solution):
        value = value_at(values, key)
        if _is_none(value, none_values):
            continue
        text = _text_of(value)
        if text is None:
            raise DataError(f"{place}: column '{key}' must be a text or a number, it is {_shown(value)}")
        truth = final_answer(text)
        if not truth:
            raise DataError(f"{place}: column '{key}' has nothing behind its last {FINAL_ANSWER}: {_shown(text[-60:])}")
        return truth, key
    if not _is_none(worked, none_values) and worked is not None and (truth := final_answer(worked)):
        return truth, columns.question
    keys = f"'{columns.answer}' (data.answer_key) or '{columns.solution}' (data.solution_key)"
    found = [f"{key} is {_shown(value_at(values, key))}" for key in (columns.answer, columns.solution) if key in values]
    if not found:
        raise DataError(f"{place} lacks the column {keys}; it has {', '.join(values)}")
    raise DataError(f"{place} has no answer in the column {keys}: {', '.join(found)}")


def final_answer(text: str) -> str:
    """What GSM8K's worked solutions have behind the last ``####``, where it is one line; else the whole text.

    A box before the mark counts more than what stands behind it.
    """
    worked, mark, answer = text.rpartition(FINAL_ANSWER)
    answer = answer.strip()
    if not mark or "\n" in answer or ("\\boxed" in worked and "\\boxed" not in answer):
        return text
    return answer


def _is_none(value: Any, none_values: Collection[str]) -> bool:
    """Null, not a number, infinite, blank, or a word that means none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return True
    text = value.strip() if isinstance(value, str) else _text_of(value)
    return text == "" or text in none_values


def _text_of(value: Any) -> str | None:
    """An answer as text: a number that is whole without a point, any other without an exponent; None for other types."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Real):
        number = float(value) + 0.0  # minus zero is zero
        return format(Decimal(repr(number)), ".0f" if number.is_integer() else "f")
    return None


def _json(value: Any, level: int = 0) -> JsonValue:
    """The value as JSON can hold it; what JSON has no word for (dates, bytes) becomes its text.

    Raises:
        RecursionError: it is nested too deeply.
    """
    if level > DEEPEST:
        raise RecursionError
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json(item, level + 1) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_json(item, level + 1) for item in value]
    return str(value)


def _shown(value: Any) -> str:
    """One line, however long the value is."""
    text = repr(value[:200]) if isinstance(value, str | list | bytes) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
