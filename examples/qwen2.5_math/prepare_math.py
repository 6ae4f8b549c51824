r"""Writes the MATH data set (Hendrycks et al. 2021) as the JSONL that the recipes read: problem, solution, level, type.

    python examples/qwen2.5_math/prepare_math.py                              # from the Hugging Face hub
    python examples/qwen2.5_math/prepare_math.py --train MATH/train --test MATH/test    # the original folders of JSON files
    python examples/qwen2.5_math/prepare_math.py --train math_train.parquet --test math500.jsonl

A source is a ``.jsonl`` or ``.parquet`` file, ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``, or a folder with one JSON
file a problem below it. By default the 7,500 training problems, and the 500 of MATH500 that the CFPO paper evaluates on.
Rows without a boxed answer cannot be scored: they are left out, and counted.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import DataError, UserError
from trainer.data.records import open_source
from trainer.run.files import write_jsonl
from workers.reward.answers import last_boxed

TRAIN = "hub:DigitalLearningGmbH/MATH-lighteval:train"
TEST = "hub:HuggingFaceH4/MATH-500:test"
COLUMNS = {"problem": ("problem",), "solution": ("solution",), "level": ("level",), "type": ("type", "subject")}
"""Our columns, and what sources call them."""


def rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with its place, for messages.

    Raises:
        DataError: no such source, or a row that is not a JSON object.
    """
    if not Path(source).is_dir():
        yield from open_source(source).rows()
        return
    files = sorted(Path(source).rglob("*.json"), key=lambda file: (file.parent.name, file.stem.zfill(8)))
    if not files:
        raise DataError(f"the folder '{source}' has no .json file below it; give MATH's train or test folder")
    for file in files:
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{file} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file} is not a JSON object but a {type(row).__name__}")
        yield str(file), row


def convert(place: str, row: dict[str, Any]) -> dict[str, str] | None:
    """The row in our columns; None when its solution has no boxed answer.

    Raises:
        DataError: a column is missing.
    """
    converted = {}
    for column, names in COLUMNS.items():
        found = next((name for name in names if row.get(name) is not None), None)
        if found is None:
            raise DataError(f"{place} has no column {' or '.join(names)}; it has {', '.join(row)}")
        converted[column] = str(row[found])
    if converted["level"].isdigit():
        converted["level"] = f"Level {converted['level']}"  # MATH500 has the bare number
    return converted if last_boxed(converted["solution"]) is not None else None


def write(source: str, target: Path) -> str:
    """Converts a source and says what was written."""
    converted = [convert(place, row) for place, row in rows(source)]
    kept = [row for row in converted if row is not None]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(target, kept)
    return f"{target}: {len(kept)} problems from {source}, {len(converted) - len(kept)} left out without a boxed answer"


def main() -> int:
    """Writes train.jsonl and test.jsonl."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", default=TRAIN, metavar="SOURCE", help=f"default {TRAIN}")
    parser.add_argument("--test", default=TEST, metavar="SOURCE", help=f"default {TEST}")
    parser.add_argument("--output", type=Path, default=Path("outputs/math"), metavar="DIR", help="default outputs/math")
    arguments = parser.parse_args()
    try:
        print(write(arguments.train, arguments.output / "train.jsonl"))
        print(write(arguments.test, arguments.output / "test.jsonl"))
    except UserError as error:
        print(f"prepare_math: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
