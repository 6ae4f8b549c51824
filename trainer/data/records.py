"""Files become rows, and rows become records: the problem, what its answer is compared with, and everything else."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.protocol import JsonValue
from trainer.config import DataConfig

HUB_PREFIX = "hub:"
_HUB = re.compile(r"hub:(?P<name>[^:\[]+)(?::(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(?:\[.*\])?)")
_HUB_FORM = "hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT, e.g. hub:openai/gsm8k:main:train"

Row = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and its values by column."""

Message = dict[str, str]
"""One turn of a chat: its ``role`` and its ``content``."""


@dataclass(frozen=True, slots=True)
class Record:
    """One problem.

    Args:
        problem: the question.
        ground_truth: its answer, or else its worked solution.
        extra: the row's other columns as JSON values, e.g. ``{"level": "Level 3", "type": "Algebra"}``.
        messages: the whole chat that is answered, system message included; it ends with a user's message.
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


class RowSource(Protocol):
    """Rows of one file."""

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            DataError: the content is malformed, or cannot be fetched.
        """
        ...


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A file of one JSON object a line; blank lines are skipped."""

    path: Path

    def rows(self) -> Iterator[Row]:
        """Every object, with its line number."""
        try:
            with self.path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{self.path} line {number}"
                        yield place, _json_object(line, place)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read as UTF-8 text: {error}") from error


@dataclass(frozen=True, slots=True)
class Parquet:
    """A parquet file."""

    path: Path

    def rows(self) -> Iterator[Row]:
        """Every row, read one row group at a time."""
        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(self.path).iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield f"{self.path} row {number}", values
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as parquet: {error}") from error

    def columns(self) -> tuple[list[str], int]:
        """Names of the columns and the number of rows, from the file's footer alone."""
        try:
            footer = pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as parquet: {error}") from error
        return list(footer.schema_arrow.names), footer.metadata.num_rows


@dataclass(frozen=True, slots=True)
class HubSplit:
    """A split of a Hugging Face data set, downloaded (and cached) by ``datasets``.

    Args:
        name: id on the hub, or a local folder of a data set.
        config: one of the data set's configurations, where it has several.
        split: its split, perhaps sliced: ``train[:1000]``.
    """

    name: str
    config: str | None
    split: str

    def rows(self) -> Iterator[Row]:
        """Every row of the split."""
        import datasets  # takes a second or two, and most runs read local files
        from datasets.exceptions import DatasetsError

        place = ":".join(part for part in (HUB_PREFIX + self.name, self.config, self.split) if part)
        try:
            dataset = datasets.load_dataset(self.name, self.config, split=self.split)
        except (DatasetsError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{place} cannot be loaded: {reason[0]}; the form is {_HUB_FORM}") from error
        for number, values in enumerate(dataset, start=1):
            yield f"{place} row {number}", dict(values)


_READERS: dict[str, Callable[[Path], RowSource]] = {".jsonl": JsonLines, ".parquet": Parquet}


def open_source(file: str) -> RowSource:
    """The source that a file name or ``hub:`` id stands for; nothing is read yet.

    Raises:
        DataError: no such file, an extension without a reader, or a malformed ``hub:`` id.
    """
    if file.startswith(HUB_PREFIX):
        match = _HUB.fullmatch(file)
        if match is None:
            raise DataError(f"'{file}' does not name a split of a data set; write {_HUB_FORM}")
        return HubSplit(match["name"], match["config"], match["split"])
    path = Path(file)
    if path.is_file():
        if path.suffix not in _READERS:
            raise DataError(
                f"{file} has the extension '{path.suffix}'; {' and '.join(_READERS)} files can be read, "
                f"and Hugging Face data sets as {_HUB_FORM}"
            )
        return _READERS[path.suffix](path)
    what = "is a folder; name the files in it" if path.is_dir() else "does not exist"
    raise DataError(f"data file '{file}' {what}{_nearby(path)}")


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
    extra = {name: _json(value) for name, value in values.items() if name not in used}
    return Record(problem, str(truth), extra, _chat([{"role": "user", "content": problem}], config))


def _chat(messages: Sequence[Message], config: DataConfig) -> list[Message]:
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    return [*system, *messages]


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


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}): {line.strip()[:80]!r}") from None
    if not isinstance(values, dict):
        raise DataError(f"{place} is not a JSON object but a {type(values).__name__}: {line.strip()[:80]!r}")
    return values


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        looks_like_id = path.suffix not in _READERS and len(path.parts) == 2
        return f"; a Hugging Face data set is written {_HUB_FORM}" if looks_like_id else ""
    found = sorted(item.name for item in folder.iterdir() if item.suffix in _READERS)
    return f"; {folder} has {', '.join(found[:8])}" if found else f"; {folder} has no {' or '.join(_READERS)} file"
