"""Rules about the algorithm: what the advantage needs, and what it could learn nothing from."""

from collections.abc import Iterator

import torch

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, Advantage, AdvantageInputs, build_advantage
from cfpo_hybrid.errors import ConfigError
from trainer.config import Config
from trainer.config.problem import Problem, with_section

ROUNDS = "rollout.generation_rounds"
NO_ADVANTAGE = 1e-6
"""Below this an advantage is rounding."""


def advantage(config: Config) -> Iterator[Problem]:
    """The advantage takes its knobs, and groups are large enough for it."""
    algorithm = config.algorithm
    if algorithm.advantage not in ADVANTAGES:
        return
    key, mistakes = "algorithm.advantage_knobs", ADVANTAGES.get(algorithm.advantage).problems(algorithm.advantage_knobs)
    if mistakes:
        yield from (Problem((key,), with_section(key, knob, message)) for knob, message in mistakes)
        return
    size = config.rollout.group_size
    smallest = build_advantage(algorithm.advantage, **algorithm.advantage_knobs).smallest_group
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


def overlong(config: Config) -> Iterator[Problem]:
    """The over-long punishment begins inside the response."""
    key, tokens = "algorithm.overlong_buffer", config.algorithm.overlong_buffer
    longest = config.data.max_response_length
    if tokens >= longest > 0:
        yield Problem(
            (key, "data.max_response_length"),
            f"{key}={tokens} tokens reach over the whole of data.max_response_length={longest}, so every response would be "
            f"punished; set it below (DAPO has a fifth: {longest // 5})",
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


RULES = (advantage, generation_rounds, overlong)
