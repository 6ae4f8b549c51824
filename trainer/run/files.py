"""Files of a run: JSON lines, valid whatever the numbers are, whole files replaced at once or not at all, and folders."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import ConfigError, DataError


def json_line(values: Mapping[str, Any]) -> str:
    """One object as a line; NaN and infinities, which JSON has no word for, become null."""
    return json.dumps(_plain(values), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every object of a file, in order; none if the file does not exist.

    A last line that breaks off is skipped: that is what a process killed while writing leaves behind.

    Raises:
        DataError: another line is not a JSON object.
    """
    return [values for _, values in _read_lines(path)]


def first_rows(path: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """The first objects of a file and how many it has; of the others none is read into memory.

    Raises:
        DataError: there is no such file, or one of the first lines is not a JSON object.
    """
    rows, total = [], 0
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for line in lines:
                if not line.endswith("\n"):  # broken off
                    continue
                total += 1
                if len(rows) < most:
                    rows.append(_object(path, total, line))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines") from error
    return rows, total


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file by these objects, one a line."""
    write_atomically(path, "".join(json_line(row) for row in rows))


def keep_steps(path: Path, last_step: int) -> int:
    """Drops the lines of a log whose ``step`` is after ``last_step``, and a last line that breaks off.

    The lines that stay keep their bytes; the file is replaced in one go.

    Returns:
        How many lines stay.

    Raises:
        DataError: a line is not a JSON object with a step.
    """
    if not path.exists():
        return 0
    lines = _read_lines(path)
    strange = next((line for line, values in lines if not isinstance(values.get("step"), int)), None)
    if strange is not None:
        raise DataError(f"{path} has a line without a step, so it is no log of a run: {strange.strip()[:80]!r}")
    kept = [line for line, values in lines if values["step"] <= last_step]
    write_atomically(path, "".join(kept))
    return len(kept)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:  # lone surrogates as JSON escapes
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def make_folder(folder: Path, name: str) -> None:
    """Makes a folder and those above it; one that is there is fine.

    Args:
        folder: to make.
        name: of the setting or option that says it, for the message.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{name} '{folder}' cannot be made ({error.strerror}); name a folder where you may write, and no file"
        ) from error


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return []
    *lines, _broken_off = path.read_text(encoding="utf-8", errors="replace").split("\n")  # not splitlines: U+2028
    objects = []
    for number, line in enumerate(lines, start=1):
        objects.append((line + "\n", _object(path, number, line)))
    return objects


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}, line {number} is not a JSON object ({error}): {line.strip()[:80]!r}; remove or mend that line"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | Integral):  # numpy's integers are Integral, its floats are Real
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value
