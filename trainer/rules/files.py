"""Rules about files: what a run will read is there, is whole, and has the columns or the tensors it needs."""

from collections.abc import Iterator
from pathlib import Path

from cfpo_hybrid.errors import ModelError, RewardError
from cfpo_hybrid.models import ModelShape
from trainer.config import Config
from trainer.config.problem import Problem
from trainer.data.inspect import inspect_files
from workers.megatron.hf_files import check_companions, check_weights
from workers.reward.user_function import find_reward


def data_files(config: Config) -> Iterator[Problem]:
    """Data files exist and have their columns, and there are problems enough for one batch."""
    yield from inspect_files(config.data)


def reward(config: Config) -> Iterator[Problem]:
    """A built-in reward, or ``path/to/file.py:function`` with a file that defines it."""
    try:
        find_reward(config.reward.name)
    except RewardError as error:
        yield Problem(("reward.name",), str(error))


def resume(config: Config) -> Iterator[Problem]:
    """``auto``, ``never``, or a checkpoint folder that exists."""
    key, value = "trainer.resume", config.trainer.resume
    if value not in ("auto", "never") and not Path(value).is_dir():
        yield Problem((key,), f"{key}={value} is neither 'auto' nor 'never' nor a checkpoint folder that exists")


def model_files(config: Config, shape: ModelShape) -> Iterator[Problem]:
    """Weights and tokenizer of a local folder are whole and fit its config.json; an id's are looked at once fetched."""
    key, folder = "model.path", Path(config.model.path).expanduser()
    if not folder.is_dir():
        return
    try:
        check_weights(folder, shape)
    except ModelError as error:
        yield Problem((key,), f"{key}={config.model.path}: {error}")
    try:
        check_companions(folder, tokenizer=not config.model.trust_remote_code)
    except ModelError as error:
        yield Problem((key,), f"{key}={config.model.path}: {error}")


RULES = (data_files, reward, resume)
MODEL_RULES = (model_files,)
