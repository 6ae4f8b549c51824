"""What is wrong with the data files, found without a tokenizer, a download or a process."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cfpo_hybrid.errors import DataError
from trainer.config import DataConfig
from trainer.config.problem import Problem, count
from trainer.data.columns import columns_of_row, columns_of_schema, type_at, value_at
from trainer.data.files import HubSplit, Parquet, open_source
from trainer.data.order import level_of
from trainer.data.records import read_records


def inspect_files(config: DataConfig, *, training: bool = True) -> Iterator[Problem]:
    """Every file that is missing or malformed, columns that are not there, and too few rows for one batch.

    JSONL is read through. Of parquet only the footer is read: the columns, their types and the number of rows. Of
    ``hub:`` data sets no more than the name is checked.

    Args:
        config: names the files.
        training: whether there must be files to train on.
    """
    if config.chat_template is not None and not Path(config.chat_template).is_file():
        key = "data.chat_template"
        yield Problem((key,), f"{key}={config.chat_template}: there is no such file")
    if training and not config.train_files:
        yield Problem(("data.train_files",), "data.train_files is empty; name at least one file to train on")
    elif training:
        yield from _inspect("data.train_files", config.train_files, config, config.train_batch_size)
        yield from _inspect_levels(config)
    for name, files in config.validation_sets.items():
        yield from _inspect(f"data.val_sets.{name}" if name else "data.val_files", files, config, 0)


def describe_files(config: DataConfig) -> Iterator[str]:
    """A line for each file: the columns that it is read by; files that cannot be read are left to ``inspect_files``."""
    files = [*config.train_files, *(file for files in config.validation_sets.values() for file in files)]
    for file in dict.fromkeys(files):
        try:
            words = _read_by(file, config)
        except DataError:
            continue
        if words:
            yield f"{file}: {words}"


def _read_by(file: str, config: DataConfig) -> str:
    source = open_source(file)
    if isinstance(source, HubSplit):
        return ""
    if isinstance(source, Parquet):
        schema = source.schema
        return columns_of_schema(file, schema, config).words(lambda key: type_at(schema, key) is not None)
    row = next(source.rows(), None)
    if row is None:
        return ""
    return columns_of_row(*row, config).words(lambda key: value_at(row[1], key) is not None)


def _inspect(key: str, files: Sequence[str], config: DataConfig, rows_needed: int) -> Iterator[Problem]:
    counts: list[int | None] = []
    for file in files:
        try:
            counts.append(_count_rows(file, config))
        except DataError as error:
            counts.append(None)
            yield Problem((key,), f"{key}: {error}")
    known = [count for count in counts if count is not None]
    if len(known) == len(files) and sum(known) < rows_needed:
        yield Problem(
            (key, "data.train_batch_size"),
            f"{key} have {count(sum(known), 'row')}, fewer than one batch of data.train_batch_size={rows_needed}; "
            "add files or take a smaller batch",
        )


def _inspect_levels(config: DataConfig) -> Iterator[Problem]:
    """Files without the levels that a curriculum goes by; a file that cannot be read is said elsewhere."""
    for file in config.train_files if config.curriculum in ("order", "widen") else ():
        try:
            levels = _has_levels(file, config)
        except DataError:
            continue
        if not levels:
            yield Problem(
                ("data.curriculum", "data.level_key"),
                f"data.curriculum={config.curriculum} goes by the column '{config.level_key}' (data.level_key), but "
                f"{file} has no level there; name the column, or set data.curriculum=none",
            )


def _has_levels(file: str, config: DataConfig) -> bool:
    source = open_source(file)
    if isinstance(source, HubSplit):
        return True
    if isinstance(source, Parquet):
        return type_at(source.schema, config.level_key) is not None
    records = read_records([file], config)
    return any(level_of(value_at(record.extra, config.level_key)) is not None for record in records)


def _count_rows(file: str, config: DataConfig) -> int | None:
    source = open_source(file)
    if isinstance(source, HubSplit):
        return None
    if not isinstance(source, Parquet):
        return len(read_records([file], config))
    rows = source.num_rows()
    if rows == 0:
        raise DataError(f"data file '{file}' has no rows")
    columns_of_schema(file, source.schema, config)
    return rows
