"""Rules about the algorithm: what the advantage needs, and settings of the KL penalty that would do nothing."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, build_advantage
from cfpo_hybrid.errors import ConfigError
from trainer.config.problem import Problem
from trainer.config.root import Config


def advantage(config: Config) -> Iterator[Problem]:
    """The advantage takes its knobs, and groups are large enough for it."""
    algorithm = config.algorithm
    if algorithm.advantage not in ADVANTAGES:
        return
    try:
        estimator = build_advantage(algorithm.advantage, **algorithm.advantage_knobs)
    except ConfigError as error:
        yield from (Problem(("algorithm.advantage_knobs",), message) for message in error.problems)
        return
    size, smallest = config.rollout.group_size, estimator.smallest_group
    if size < smallest:
        yield Problem(
            ("rollout.group_size", "algorithm.advantage"),
            f"rollout.group_size={size} leaves too little to compare a response with: algorithm.advantage="
            f"'{algorithm.advantage}' needs at least {smallest} responses a prompt; set rollout.group_size={smallest} "
            f"or more",
        )


def kl_penalty(config: Config) -> Iterator[Problem]:
    """Where and how the KL penalty acts is said only where there is one."""
    algorithm = config.algorithm
    if algorithm.kl_coef != 0:
        return
    for key, value, off in (("kl_in_reward", algorithm.kl_in_reward, False), ("kl_target", algorithm.kl_target, None)):
        if value != off:
            yield Problem(
                (f"algorithm.{key}", "algorithm.kl_coef"),
                f"algorithm.{key}={value} does nothing at algorithm.kl_coef=0; set kl_coef above 0, or leave {key} out",
            )


RULES = (advantage, kl_penalty)
