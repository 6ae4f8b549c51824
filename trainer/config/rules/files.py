"""Rules about files: what a run will read is there, and has the columns it needs."""

from collections.abc import Iterator
from pathlib import Path

from trainer.config.problem import Problem, one_of
from trainer.config.root import Config
from trainer.data.inspect import inspect_files

REWARDS = ("math",)


def data_files(config: Config) -> Iterator[Problem]:
    """Data files exist and have their columns, and there are problems enough for one batch."""
    yield from inspect_files(config.data)


def reward(config: Config) -> Iterator[Problem]:
    """A built-in reward, or ``path/to/file.py:function`` with a file that exists."""
    key, name = "reward.name", config.reward.name
    file, colon, function = name.rpartition(":")
    if not colon:
        yield from one_of(key, name, (*REWARDS, "path/to/file.py:function"))
    elif not Path(file).is_file():
        yield Problem((key,), f"{key}={name}: there is no file '{file}'; name one as path/to/file.py:function")
    elif not function.isidentifier():
        yield Problem((key,), f"{key}={name}: '{function}' is no function name; write path/to/file.py:function")


def resume(config: Config) -> Iterator[Problem]:
    """``auto``, ``never``, or a checkpoint folder that exists."""
    key, value = "trainer.resume", config.trainer.resume
    if value not in ("auto", "never") and not Path(value).is_dir():
        yield Problem((key,), f"{key}={value} is neither 'auto' nor 'never' nor a checkpoint folder that exists")


RULES = (data_files, reward, resume)
