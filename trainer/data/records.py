"""Rows become records: the problem, what its answer is compared with, and everything else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import JsonValue
from trainer.config.data_config import DataConfig
from trainer.data.source import Row, open_source


@dataclass(frozen=True, slots=True)
class Record:
    """One problem.

    Args:
        problem: the question.
        ground_truth: its answer, or else its worked solution.
        extra: the row's other columns as JSON values, e.g. ``{"level": "Level 3", "type": "Algebra"}``.
    """

    problem: str
    ground_truth: str
    extra: dict[str, JsonValue]


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
        for row in open_source(file).rows():
            if limit is not None and len(records) >= limit:
                return records
            records.append(_record(row, config))
        if len(records) == before:
            raise DataError(f"data file '{file}' has no rows")
    return records


def check_columns(place: str, columns: Iterable[str], config: DataConfig) -> None:
    """Checks that there is a problem, and an answer or a solution.

    Raises:
        DataError: a column is missing; the message names the columns that are there.
    """
    there = list(columns)
    missing = []
    if config.problem_key not in there:
        missing.append(f"'{config.problem_key}' (data.problem_key)")
    if config.answer_key not in there and config.solution_key not in there:
        missing.append(f"'{config.answer_key}' (data.answer_key) or '{config.solution_key}' (data.solution_key)")
    if missing:
        raise DataError(f"{place} lacks the column {' and the column '.join(missing)}; it has {', '.join(there)}")


def _record(row: Row, config: DataConfig) -> Record:
    place, values = row
    check_columns(place, values, config)
    problem = values[config.problem_key]
    if not isinstance(problem, str) or not problem.strip():
        raise DataError(f"{place}: column '{config.problem_key}' must be a text, it is {problem!r}")
    key = config.answer_key if values.get(config.answer_key) is not None else config.solution_key
    truth = values.get(key)
    if isinstance(truth, bool) or not isinstance(truth, str | int | float) or not str(truth).strip():
        raise DataError(f"{place}: column '{key}' must be a text or a number, it is {truth!r}")
    used = (config.problem_key, key)
    return Record(problem, str(truth), {name: _json(value) for name, value in values.items() if name not in used})


def _json(value: Any) -> JsonValue:
    """The value as JSON can hold it; what JSON has no word for (dates, bytes) becomes its text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_json(item) for item in value]
    return str(value)
