r"""Problems from files and Hugging Face data sets, in the columns of the MATH data set.

{"problem": "What is 1+1?", "solution": "1+1=2, so \\boxed{2}.", "level": "Level 1", "type": "Sums"}
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cfpo_hybrid.errors import DataError
from cfpo_hybrid.registry import nearest_name
from trainer.config.data_config import DataConfig

HUB = "hub:"
SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Problem:
    r"""One row of a data set.

    Args:
        text: the problem as a person would put it.
        ground_truth: a bare answer, or a worked solution that ends in ``\\boxed{answer}``.
        extra: the other columns, for rewards and reports.
    """

    text: str
    ground_truth: str
    extra: dict[str, Any] = field(default_factory=dict)


def read_problems(sources: Iterable[str], config: DataConfig) -> list[Problem]:
    """The problems of all sources, one source after the other.

    Raises:
        DataError: a source that is missing, empty, malformed or lacks a column.
    """
    problems = []
    for source in sources:
        rows = list(_rows(source))
        if not rows:
            raise DataError(f"'{source}' is empty; it must hold at least one problem")
        problems.extend(_problem(row, f"'{source}' row {number}", config) for number, row in enumerate(rows, start=1))
    return problems


def find_source_problems(source: str, config: DataConfig) -> str | None:
    """What is wrong with a source as far as its first row shows; None when nothing is.

    Reads little: a wrong row further down is found when training begins. A Hugging Face id is not looked up.
    """
    if source.startswith(HUB):
        return None
    try:
        first = next(_rows(source), None)
        if first is None:
            return f"'{source}' is empty; it must hold at least one problem"
        _problem(first, f"'{source}' row 1", config)
    except DataError as error:
        return str(error)
    return None


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    if source.startswith(HUB):
        return _hub_rows(source)
    path = Path(source)
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"'{source}' is neither a {' nor a '.join(SUFFIXES)} file; for a Hugging Face data set write "
            f"{HUB}owner/name[:config[:split]]"
        )
    if not path.is_file():
        raise DataError(f"there is no file '{source}'; give a path that exists, relative to where the command is run")
    return _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)


def _jsonl_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"'{path}' line {number} is not JSON ({error}); each line must be one object"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"'{path}' line {number} is a {type(row).__name__}; each line must be one JSON object")
            yield row


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"'{path}' is not a parquet file that can be read ({error}); write it again") from error


def _hub_rows(source: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset  # takes seconds to import, and only this source needs it

    name, config, split = ([*source.removeprefix(HUB).split(":"), "", ""])[:3]
    try:
        rows = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises a different type for each of network, name, config and split
        raise DataError(
            f"the Hugging Face data set '{source}' cannot be loaded: {error}; check {HUB}owner/name[:config[:split]] and "
            "the network, or download it and name its files"
        ) from error
    for row in rows:
        yield dict(row)


def _problem(row: Mapping[str, Any], where: str, config: DataConfig) -> Problem:
    text = row.get(config.problem_key)
    truth = row.get(config.answer_key)
    if truth is None:
        truth = row.get(config.solution_key)
    if text is None or truth is None:
        needed = config.problem_key if text is None else f"{config.answer_key} or {config.solution_key}"
        key = "data.problem_key" if text is None else "data.answer_key or data.solution_key"
        nearest = nearest_name(config.problem_key if text is None else config.solution_key, row)
        hint = f" (nearest: '{nearest}')" if nearest else ""
        raise DataError(
            f"{where} has no column {needed}; it has {', '.join(row) or 'none'}{hint}; set {key} to the right one"
        )
    if not str(text).strip():
        raise DataError(f"{where} has an empty {config.problem_key}; remove the row")
    used = {config.problem_key}
    return Problem(str(text), str(truth), {name: _plain(value) for name, value in row.items() if name not in used})


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
