"""Which columns of a file hold the question and what its answer is compared with: named, or recognised by their names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
from pyarrow import types

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.config.schema import USUAL_COLUMNS


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a file is read by. A name with dots reaches into a nested column.

    Args:
        question: a text, or a chat: a list of messages with role and content.
        answer: the final answer.
        solution: a worked solution, used where there is no answer.
    """

    question: str
    answer: str
    solution: str

    def words(self, has: Callable[[str], bool]) -> str:
        """What is read from where, for people."""
        answers = [f"'{key}'" for key in (self.answer, self.solution) if has(key)] or ["the last assistant message"]
        return f"question from '{self.question}', answer from {', else '.join(answers)}"


FORMS = (
    Columns(*USUAL_COLUMNS.values()),
    Columns("prompt", "reward_model.ground_truth", "solution"),  # verl
    Columns("question", "answer", "solution"),  # GSM8K
    Columns("prompt", "answer", "solution"),
    Columns("messages", "answer", "solution"),
)
"""Recognised in this order."""

CHAT_COLUMN = "messages"
"""A chat may bring its answer: the assistant's message at its end."""


def recognise(place: str, names: list[str], has: Callable[[str], bool], config: DataConfig) -> Columns:
    """The columns of a file: keys of the configuration where they are given, else those of the first form that fits.

    Args:
        place: the file or row, for messages.
        names: of its columns, for messages.
        has: whether a column, perhaps a nested one, is there and may have values.
        config: of the keys.

    Raises:
        DataError: no form fits; the message names the columns that are there.
    """
    candidates = [
        Columns(
            config.problem_key or form.question,
            config.answer_key or form.answer,
            config.solution_key or form.solution,
        )
        for form in FORMS
    ]
    asked = [candidate for candidate in candidates if has(candidate.question)]
    for columns in asked:
        if has(columns.answer) or has(columns.solution) or columns.question == CHAT_COLUMN:
            return columns
    there = f"it has {', '.join(names) or 'none'}"
    if not asked and config.problem_key is None:
        questions = dict.fromkeys(f"'{candidate.question}'" for candidate in candidates)
        raise DataError(
            f"{place} has no column of the question: none of {', '.join(questions)} has values; {there}; "
            "name the columns in data.problem_key and data.answer_key"
        )
    if not asked:
        raise DataError(f"{place} lacks the column '{config.problem_key}' (data.problem_key); {there}")
    if config.problem_key is not None:
        return asked[0]  # whether it is a chat that brings its answer is seen in its values
    answers = dict.fromkeys(f"'{candidate.answer}'" for candidate in asked)
    raise DataError(
        f"{place} lacks the column {' or '.join(answers)} (data.answer_key) or '{asked[0].solution}' "
        f"(data.solution_key); {there}"
    )


def columns_of_row(place: str, values: Mapping[str, Any], config: DataConfig) -> Columns:
    """As a file's first row has them.

    Raises:
        DataError: no form fits.
    """
    return recognise(place, list(values), lambda key: value_at(values, key) is not None, config)


def columns_of_schema(place: str, schema: pyarrow.Schema, config: DataConfig) -> Columns:
    """As a parquet file's header has them, of types that can be trained on.

    Raises:
        DataError: no form fits, or a column is of a type that no row could be read from.
    """

    def has(key: str) -> bool:
        kind = type_at(schema, key)
        return kind is not None and not types.is_null(kind)

    columns = recognise(place, schema.names, has, config)
    question = type_at(schema, columns.question)
    assert question is not None, "recognised"
    is_chat = _is_chat(question)
    if not _is_text(question) and not is_chat:
        raise DataError(
            f"{place}: column '{columns.question}' holds {question}; a question is a text, or a list of messages with the "
            "texts role and content"
        )
    for key in (columns.answer, columns.solution):
        kind = type_at(schema, key)
        if kind is None or types.is_null(kind):
            continue
        if not _is_text(kind) and not _is_number(kind):
            raise DataError(f"{place}: column '{key}' holds {kind}; an answer is a text or a number")
        return columns
    if not is_chat:
        raise DataError(
            f"{place} has no value in '{columns.answer}' (data.answer_key) or '{columns.solution}' (data.solution_key); "
            f"it has {', '.join(schema.names)}"
        )
    return columns


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value of a column, or of a field of nested columns by dots; None where there is none.

    Example: ``value_at({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")`` is ``"4"``.
    """
    if key in values:
        return values[key]
    for head, tail in _splits(key):
        inner = values.get(head)
        if isinstance(inner, Mapping):
            value = value_at(inner, tail)
            if value is not None:
                return value
    return None


def type_at(schema: pyarrow.Schema | pyarrow.StructType, key: str) -> pyarrow.DataType | None:
    """As ``value_at``, of the types in a header; the values' type where they are wrapped."""
    if schema.get_field_index(key) >= 0:
        return _plain(schema.field(key).type)
    for head, tail in _splits(key):
        if schema.get_field_index(head) >= 0:
            inner = _plain(schema.field(head).type)
            kind = type_at(inner, tail) if isinstance(inner, pyarrow.StructType) else None
            if kind is not None:
                return kind
    return None


def _splits(key: str) -> list[tuple[str, str]]:
    parts = key.split(".")
    return [(".".join(parts[:end]), ".".join(parts[end:])) for end in range(1, len(parts))]


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _plain(kind.storage_type)
    return _plain(kind.value_type) if isinstance(kind, pyarrow.DictionaryType) else kind


def _is_text(kind: pyarrow.DataType) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_number(kind: pyarrow.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _item(kind: pyarrow.DataType) -> pyarrow.DataType | None:
    """The type of a list's items; None where it is no list."""
    if types.is_map(kind):
        return None
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return _plain(kind.field(0).type) if is_list or types.is_list_view(kind) or types.is_large_list_view(kind) else None


def _is_chat(kind: pyarrow.DataType) -> bool:
    """A list of structs with the texts role and content; the content may be a list of parts."""
    message = _item(kind)
    if not isinstance(message, pyarrow.StructType):
        return False
    role, content = type_at(message, "role"), type_at(message, "content")
    if role is None or content is None or not _is_text(role):
        return False
    part = _item(content)
    return _is_text(content) or (isinstance(part, pyarrow.StructType) and type_at(part, "text") is not None)
