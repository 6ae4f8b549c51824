"""Rules about files: what a run will read is there, and has the columns it needs."""

import math
from collections.abc import Iterator
from pathlib import Path

from cfpo_hybrid.errors import RewardError
from trainer.config import Config
from trainer.config.problem import Problem
from trainer.data.inspect import inspect_files
from workers.reward.scorers import RESERVED, reward_label
from workers.reward.user_function import MATH, find_reward


def data_files(config: Config) -> Iterator[Problem]:
    """Data files exist and have their columns, and there are problems enough for one batch."""
    yield from inspect_files(config.data)


def reward(config: Config) -> Iterator[Problem]:
    """Rewards are built in, or functions in files that can be called; each has a weight and a name of its own."""
    settings = config.reward
    keys = ["reward.name", *["reward.further"] * len(settings.further)]
    for key, name in zip(keys, settings.names, strict=True):
        try:
            find_reward(name, key)
        except RewardError as error:
            yield Problem((key,), str(error))
    labels = [reward_label(name) for name in settings.names]
    if settings.further:
        for label in sorted({label for label in labels if labels.count(label) > 1 or label in RESERVED}):
            problem = "names two rewards" if labels.count(label) > 1 else "is a metric of every run"
            yield Problem(("reward.further",), f"reward/{label} {problem}; give the function another name in its file")
    if settings.weights and len(settings.weights) != len(labels):
        yield Problem(
            ("reward.weights",),
            f"reward.weights={settings.weights} must be as many as the rewards, {len(labels)}: first that of reward.name, "
            f"then those of reward.further; leave them out for 1 each",
        )
    if not all(map(math.isfinite, settings.weights)):
        yield Problem(("reward.weights",), f"reward.weights={settings.weights} must be finite numbers")
    if settings.lowest is not None and settings.highest is not None and settings.lowest >= settings.highest:
        yield Problem(
            ("reward.lowest", "reward.highest"),
            f"reward.lowest={settings.lowest} must be below reward.highest={settings.highest}",
        )
    functions = [name for name in settings.names if name != MATH]
    for key in ("lowest", "highest", "special_tokens"):
        value = vars(settings)[key]
        if not functions and value is not None and value is not False:
            yield Problem(
                (f"reward.{key}",),
                f"reward.{key} is for functions of your own, and reward.name={MATH} is none; leave it out",
            )


def resume(config: Config) -> Iterator[Problem]:
    """``auto``, ``never``, or a checkpoint folder that exists."""
    key, value = "trainer.resume", config.trainer.resume
    if value not in ("auto", "never") and not Path(value).is_dir():
        yield Problem((key,), f"{key}={value} is neither 'auto' nor 'never' nor a checkpoint folder that exists")


RULES = (data_files, reward, resume)
