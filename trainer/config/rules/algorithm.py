"""Rules about the algorithm: what the advantage needs, and settings of KL penalty and schedule that would do nothing."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, build_advantage
from trainer.config.problem import Problem, with_section
from trainer.config.root import Config
from workers.config import AlgorithmConfig


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


def kl_to_reference(config: Config) -> Iterator[Problem]:
    """Where and how the KL penalty to the reference acts is said only where there is one."""
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


def schedule(config: Config) -> Iterator[Problem]:
    """A floor of the learning rate is for a schedule that falls."""
    optimizer, key = config.actor.optimizer, "actor.optimizer.min_lr_ratio"
    if optimizer.min_lr_ratio > 0 and optimizer.schedule == "constant":
        yield Problem(
            (key, "actor.optimizer.schedule"),
            f"{key}={optimizer.min_lr_ratio:g} does nothing with actor.optimizer.schedule=constant; set the schedule to "
            f"cosine, or leave {key} out",
        )


RULES = (advantage, kl_to_reference, schedule)
