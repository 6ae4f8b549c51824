"""Rules about what is sampled and how it is used: rounds of generation, over-long responses, curriculum, mini-batches."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, build_advantage
from cfpo_hybrid.errors import ConfigError
from trainer.config.problem import Problem
from trainer.config.schema import Config
from trainer.rollout.advantages import learns_from_equal_rewards

ROUNDS = "rollout.generation_rounds"
BUFFER = "algorithm.overlong_buffer"


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
    if size >= estimator.smallest_group and learns_from_equal_rewards(estimator, size):
        yield Problem(
            (ROUNDS, "algorithm.advantage"),
            f"{ROUNDS}={rounds} drops prompts whose responses all earn the same, but algorithm.advantage='{name}' learns "
            f"from them; set {ROUNDS}=1, or an advantage that compares within the group, e.g. grpo",
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


def balance(config: Config) -> Iterator[Problem]:
    """One mini-batch has nothing to be balanced with."""
    key, ratio = "algorithm.balance_mini_batches", "algorithm.batch_ratio"
    if config.algorithm.balance_mini_batches and config.algorithm.batch_ratio == 1:
        yield Problem((key, ratio), f"{key}=true does nothing at {ratio}=1; raise {ratio}, or leave {key} out")


def curriculum(config: Config) -> Iterator[Problem]:
    """The steps of a curriculum are given where levels come in by steps, and nowhere else."""
    data, key = config.data, "data.curriculum_steps"
    if data.curriculum == "widen" and data.curriculum_steps == 0:
        yield Problem(
            ("data.curriculum", key),
            f"data.curriculum=widen lets levels in over {key} rollout steps, which is 0; set it, e.g. to half of "
            f"trainer.total_steps={config.trainer.total_steps}",
        )
    if data.curriculum in ("none", "order") and data.curriculum_steps > 0:
        yield Problem(
            ("data.curriculum", key),
            f"{key}={data.curriculum_steps} does nothing at data.curriculum={data.curriculum}; set data.curriculum=widen, "
            f"or leave {key} out",
        )


RULES = (generation_rounds, overlong, balance, curriculum)
