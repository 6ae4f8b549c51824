"""Rules about the algorithm: what the advantage needs, and what it could learn nothing from."""

from collections.abc import Iterator

import torch

from cfpo_hybrid.algorithms.advantage import ADVANTAGES, Advantage, AdvantageInputs, build_advantage
from cfpo_hybrid.algorithms.objective import AGGREGATIONS
from cfpo_hybrid.algorithms.policy_loss import POLICY_LOSSES
from cfpo_hybrid.errors import ConfigError
from trainer.config import Config
from trainer.config.problem import Problem, with_section

ROUNDS = "rollout.generation_rounds"
DR_GRPO = "seq_mean_token_sum_norm"
WIDE_FOR_GSPO = 0.1
"""A bound from which GSPO's ratio is as good as free."""
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


def aggregation(config: Config) -> Iterator[Problem]:
    """The loss stays the one it is called: some are defined by the mean over a response."""
    key, name = "algorithm.loss_aggregation", config.policy_loss.name
    own = POLICY_LOSSES.get(name).aggregations if name in POLICY_LOSSES else ()
    unknown = [one for one in own if one not in AGGREGATIONS]
    if unknown:
        yield Problem(
            ("policy_loss.name",),
            f"policy_loss.name={name} is registered with the aggregation {' and '.join(unknown)}, which is unknown; known: "
            f"{', '.join(AGGREGATIONS)}",
        )
    elif own and config.algorithm.loss_aggregation not in own:
        yield Problem(
            (key, "policy_loss.name"),
            f"{key}={config.algorithm.loss_aggregation} would make another loss of policy_loss.name={name}, which is "
            f"defined for {' and '.join(own)}; set {key}={own[0]}, or take another loss",
        )


def kl_term(config: Config) -> Iterator[Problem]:
    """What is added to the loss pulls towards the starting model."""
    key, algorithm = "algorithm.kl_estimator", config.algorithm
    if algorithm.kl_estimator == "k1" and algorithm.kl_coef > 0 and not algorithm.kl_in_reward:
        yield Problem(
            (key, "algorithm.kl_coef", "algorithm.kl_in_reward"),
            f"{key}=k1 as a term of the loss holds nothing back: its gradient is that of log pi, whose mean over sampled "
            f"tokens is 0, so it adds noise and no pull to the starting model; set {key}=k1+ (the value of k1 with the "
            f"gradient of the KL), k2 or k3, or algorithm.kl_in_reward=true, where k1 is right",
        )


def remarks(config: Config) -> Iterator[str]:
    """What is allowed, and makes another algorithm than its names say."""
    algorithm, loss, knobs = config.algorithm, config.policy_loss.name, config.policy_loss.knobs
    if algorithm.advantage == "dr_grpo" and algorithm.loss_aggregation != DR_GRPO:
        yield (
            f"algorithm.advantage=dr_grpo is Dr. GRPO with algorithm.loss_aggregation={DR_GRPO} alone; with "
            f"{algorithm.loss_aggregation} it is GRPO without the standard deviation, also called grpo_no_std"
        )
    if loss == "gspo" and max(knobs["clip_low"], knobs["clip_high"]) >= WIDE_FOR_GSPO:
        yield (
            f"policy_loss.clip_low={knobs['clip_low']:g} and clip_high={knobs['clip_high']:g} bound the ratio of a whole "
            "response, its geometric mean, which hardly ever moves so far; the paper has 3e-4 and 4e-4"
        )
    on_policy = algorithm.updates_per_step == 1 and not algorithm.weight_lag and algorithm.old_log_probs == "recompute"
    plain = loss == "policy_gradient" and not knobs["importance_weighted"]
    if on_policy and loss != "policy_gradient":
        yield (
            f"with one optimizer step a rollout every ratio is 1, where policy_loss.name={loss} bounds nothing: raise "
            "algorithm.iterations or algorithm.batch_ratio to see it work"
        )
    if plain and not on_policy:
        yield (
            "policy_loss.name=policy_gradient takes samples of older weights for those of the policy in training; "
            "policy_loss.importance_weighted=true weighs them"
        )


RULES = (advantage, generation_rounds, overlong, aggregation, kl_term)
