"""Rules about the algorithm: what the advantage needs, and settings of penalties and schedule that would do nothing."""

from collections.abc import Iterator

import torch

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, Advantage, AdvantageInputs, build_advantage
from cfpo_hybrid.errors import ConfigError
from trainer.config import Config
from trainer.config.problem import Problem
from workers.config import AlgorithmConfig

ROUNDS = "rollout.generation_rounds"
BUFFER = "algorithm.overlong_buffer"
NO_ADVANTAGE = 1e-6
"""Below this an advantage is rounding."""


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


def generation_rounds(config: Config) -> Iterator[Problem]:
    """Dropping groups of equal rewards makes sense where there are groups, and nothing is learnt from equal rewards."""
    rounds, size, name = config.rollout.generation_rounds, config.rollout.group_size, config.algorithm.advantage
    if rounds <= 1 or size < 1 or name not in ADVANTAGES:
        return
    if size == 1:
        yield Problem(
            (ROUNDS, "rollout.group_size"),
            f"{ROUNDS}={rounds} drops prompts whose responses all earn the same, which at rollout.group_size=1 are all; "
            f"set {ROUNDS}=1, or a group_size of 2 or more",
        )
        return
    try:
        estimator = build_advantage(name, **config.algorithm.advantage_knobs)
    except ConfigError:
        return
    if size >= estimator.smallest_group and _learns_from_equal_rewards(estimator, size):
        yield Problem(
            (ROUNDS, "algorithm.advantage"),
            f"{ROUNDS}={rounds} drops prompts whose responses all earn the same, but algorithm.advantage='{name}' learns "
            f"from them; set {ROUNDS}=1, or an advantage that compares within the group, e.g. grpo",
        )


def kl_penalty(config: Config) -> Iterator[Problem]:
    """Where and how the KL penalty acts is said only where there is one."""
    algorithm = config.algorithm
    if algorithm.kl_target is None and algorithm.kl_horizon != AlgorithmConfig().kl_horizon:
        yield Problem(
            ("algorithm.kl_horizon", "algorithm.kl_target"),
            f"algorithm.kl_horizon={algorithm.kl_horizon} does nothing without algorithm.kl_target, which steers kl_coef; set "
            f"kl_target, or leave kl_horizon out",
        )
    if algorithm.kl_coef != 0:
        return
    for key, value, off in (("kl_in_reward", algorithm.kl_in_reward, False), ("kl_target", algorithm.kl_target, None)):
        if value != off:
            yield Problem(
                (f"algorithm.{key}", "algorithm.kl_coef"),
                f"algorithm.{key}={value} does nothing at algorithm.kl_coef=0; set kl_coef above 0, or leave {key} out",
            )


def overlong(config: Config) -> Iterator[Problem]:
    """The over-long punishment begins inside the response, and is sized only where there is one."""
    algorithm, longest = config.algorithm, config.data.max_response_length
    if algorithm.overlong_buffer >= longest > 0:
        yield Problem(
            (BUFFER, "data.max_response_length"),
            f"{BUFFER}={algorithm.overlong_buffer} tokens reach over the whole of data.max_response_length={longest}, so "
            f"every response would be punished; set it below (DAPO has a fifth: {longest // 5})",
        )
    if algorithm.overlong_buffer == 0 and algorithm.overlong_penalty != 1.0:
        key = "algorithm.overlong_penalty"
        yield Problem(
            (key, BUFFER),
            f"{key}={algorithm.overlong_penalty} does nothing at {BUFFER}=0; set {BUFFER} to the tokens before the limit "
            f"over which the punishment grows, or leave {key} out",
        )


def schedule(config: Config) -> Iterator[Problem]:
    """A floor of the learning rate is for a schedule that falls."""
    optimizer, key = config.actor.optimizer, "actor.optimizer.min_lr_ratio"
    if optimizer.min_lr_ratio > 0 and optimizer.schedule == "constant":
        yield Problem(
            (key, "actor.optimizer.schedule"),
            f"{key}={optimizer.min_lr_ratio:g} does nothing with actor.optimizer.schedule=constant; set the schedule to "
            f"cosine, or leave {key} out",
        )


def _learns_from_equal_rewards(estimator: Advantage, group_size: int) -> bool:
    """Whether a group whose responses all earn the same gets advantages other than 0: it is tried out."""
    rewards = torch.ones(2, group_size)
    rewards[1, 0] = 0.0
    inputs = AdvantageInputs(
        rewards=rewards.flatten(),
        group_ids=torch.arange(2).repeat_interleave(group_size),
        response_lengths=torch.ones(2 * group_size, dtype=torch.int64),
        greedy_rewards=torch.full((2 * group_size,), 0.5),
    )
    return bool((estimator(inputs)[:group_size].abs() > NO_ADVANTAGE).any())


RULES = (advantage, generation_rounds, kl_penalty, overlong, schedule)
