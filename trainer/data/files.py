"""Data files become rows: JSONL, parquet, and data sets of the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet

from cfpo_hybrid.errors import DataError

HUB_PREFIX = "hub:"
_HUB = re.compile(r"hub:(?P<name>[^:\[]+)(?::(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(?:\[.*\])?)")
_HUB_FORM = "hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT, e.g. hub:openai/gsm8k:main:train"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half a character; two halves beside each other are a whole one."""
_BOM = "\ufeff"

Row = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and its values by column."""


class RowSource(Protocol):
    """Rows of one file."""

    def rows(self) -> Iterator[Row]:
        """Every row, in order.

        Raises:
            DataError: the content is malformed, or cannot be fetched; the message names the file and the row.
        """
        ...


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A file of one JSON object a line in UTF-8, perhaps with a byte order mark; blank lines are skipped."""

    path: Path

    def rows(self) -> Iterator[Row]:
        """Every object, with its line number."""
        try:
            # Bytes that are not UTF-8 become half characters, so that the line they stand in is known.
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = f"{self.path} line {number}"
                        yield place, _json_object(line, place)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Parquet:
    """A parquet file."""

    path: Path

    @cached_property
    def schema(self) -> pyarrow.Schema:
        """The columns and their types, from the file's footer.

        Raises:
            DataError: the file is no parquet, or two columns have one name.
        """
        schema = self._open().schema_arrow
        doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if doubled:
            raise DataError(f"{self.path} has two columns named {', '.join(doubled)}; rename one")
        return schema

    def num_rows(self) -> int:
        """The number of rows, from the file's footer."""
        return self._open().metadata.num_rows

    def rows(self) -> Iterator[Row]:
        """Every row, read one row group at a time."""
        number = 0
        narrow = [field.name for field in self.schema if _has_narrow_floats(field.type)]
        try:
            for batch in self._open().iter_batches():
                for values in self._values(batch, number):
                    number += 1
                    for name in narrow:
                        values[name] = _shortest(values[name], self.schema.field(name).type)
                    yield f"{self.path} row {number}", values
        except (pyarrow.ArrowException, OSError) as error:
            after = f" after row {number}" if number else ""
            raise DataError(f"{self.path} cannot be read as parquet{after}: {error}") from error

    def _open(self) -> pyarrow.parquet.ParquetFile:
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as parquet: {error}") from error

    def _values(self, batch: pyarrow.RecordBatch, before: int) -> list[dict[str, Any]]:
        """The rows of a batch; one that has no Python value (text that is not UTF-8, a date out of range) is named."""
        try:
            return batch.to_pylist()
        except (ValueError, ArithmeticError):
            for index in range(batch.num_rows):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    try:
                        column[index].as_py()
                    except (ValueError, ArithmeticError) as error:
                        place = f"{self.path} row {before + index + 1}: column '{name}'"
                        raise DataError(f"{place} cannot be read: {error}") from error
            raise


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
        number = 0
        try:
            for number, values in enumerate(dataset, start=1):
                yield f"{place} row {number}", dict(values)
        except (ValueError, ArithmeticError, OSError) as error:
            raise DataError(f"{place} row {number + 1} cannot be read: {error}") from error


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


def _json_object(line: str, place: str) -> dict[str, Any]:
    shown = f"{line.strip()[:80]!r}"
    if not line.isascii() and (bytes_of := _bytes_that_are_not_utf8(line)):
        hint = "; it is UTF-16, save it as UTF-8" if bytes_of in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{place} is not UTF-8 text (bytes {bytes_of.hex(' ')}){hint}: {shown}")
    if line.startswith(_BOM):
        raise DataError(f"{place} begins with a byte order mark, as where files were joined; take it out: {shown}")
    try:
        values = json.loads(line, object_pairs_hook=_with_each_key_once)
        if _SURROGATE.search(line):
            json.dumps(values, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({error}): {shown}") from None
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise DataError(f"{place} holds half a character ({half} without its other half): {shown}") from None
    except _DoubledKeyError as error:
        raise DataError(f"{place} has two values of '{error}': {shown}") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply to be read: {shown}") from None
    except ValueError:  # Python's limit for whole numbers, which keeps a conversion from taking minutes
        raise DataError(f"{place} holds a number of thousands of digits; write it as a text: {shown}") from None
    if not isinstance(values, dict):
        raise DataError(f"{place} is not a JSON object but a {type(values).__name__}: {shown}")
    return values


class _DoubledKeyError(Exception):
    """Names the key."""


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DoubledKeyError(next(name for name in names if names.count(name) > 1))
    return values


def _bytes_that_are_not_utf8(line: str) -> bytes:
    """The first of them that stand beside each other; empty for good text."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return line[error.start : error.end].encode(errors="surrogateescape")
    return b""


def _has_narrow_floats(kind: pyarrow.DataType) -> bool:
    if kind.num_fields:
        return any(_has_narrow_floats(kind.field(index).type) for index in range(kind.num_fields))
    return pyarrow.types.is_float32(kind) or pyarrow.types.is_float16(kind)


def _shortest(value: Any, kind: pyarrow.DataType) -> Any:
    """Numbers of 32 and 16 bits as the shortest decimals that mean them: 0.1, not 0.10000000149011612."""
    if value is None or not _has_narrow_floats(kind) or pyarrow.types.is_map(kind):
        return value
    if pyarrow.types.is_struct(kind):
        return {name: _shortest(item, kind.field(name).type) for name, item in value.items()}
    if kind.num_fields:
        return [_shortest(item, kind.field(0).type) for item in value]
    return float(str(np.float16(value) if pyarrow.types.is_float16(kind) else np.float32(value)))


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        looks_like_id = path.suffix not in _READERS and len(path.parts) == 2
        return f"; a Hugging Face data set is written {_HUB_FORM}" if looks_like_id else ""
    found = sorted(item.name for item in folder.iterdir() if item.suffix in _READERS)
    return f"; {folder} has {', '.join(found[:8])}" if found else f"; {folder} has no {' or '.join(_READERS)} file"
