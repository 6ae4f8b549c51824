"""Rules about single values: the range of a number, NaN lying in none, known names, and settings that would do nothing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.algorithms.kl import KL_ESTIMATORS
from cfpo_hybrid.algorithms.objective import AGGREGATIONS
from trainer.config import Config
from trainer.config.problem import Problem, one_of
from trainer.tracking import check_trackers
from workers.config import PASS_ACTIONS, STEP_ACTIONS


@dataclass(frozen=True, slots=True)
class Range:
    """Where a number may lie.

    Example: ``Range("above 0", lambda value: value > 0)``.
    """

    words: str
    holds: Callable[[float], bool]


INFINITY = float("inf")
POSITIVE = Range("above 0", lambda value: 0 < value < INFINITY)
NOT_NEGATIVE = Range("0 or more", lambda value: 0 <= value < INFINITY)
AT_LEAST_ONE = Range("at least 1", lambda value: value >= 1)
SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Range("from 0 to below 1", lambda value: 0 <= value < 1)
BETWEEN = Range("above 0 and below 1", lambda value: 0 < value < 1)
AT_LEAST_TWO = Range("at least 2", lambda value: value >= 2)
FINITE = Range("finite", lambda value: -INFINITY < value < INFINITY)
SEED = Range("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
TOP_K = Range("-1 (off) or at least 1", lambda value: value == -1 or value >= 1)

RANGES: dict[str, Range] = {
    "data.train_batch_size": AT_LEAST_ONE,
    "data.val_batch_size": AT_LEAST_ONE,
    "data.val_limit": AT_LEAST_ONE,
    "data.max_prompt_length": AT_LEAST_ONE,
    "data.max_response_length": AT_LEAST_ONE,
    "data.curriculum_steps": NOT_NEGATIVE,
    "rollout.group_size": AT_LEAST_ONE,
    "rollout.generation_rounds": AT_LEAST_ONE,
    "rollout.temperature": POSITIVE,
    "rollout.top_p": POSITIVE_SHARE,
    "rollout.top_k": TOP_K,
    "rollout.tensor_parallel_size": AT_LEAST_ONE,
    "rollout.gpu_memory_utilization": BETWEEN,
    "rollout.kv_cache_bytes": AT_LEAST_ONE,
    "rollout.max_num_seqs": AT_LEAST_ONE,
    "rollout.max_num_batched_tokens": AT_LEAST_ONE,
    "rollout.bucket_bytes": Range("at least 1024", lambda value: value >= 1024),
    "rollout.probe_every": NOT_NEGATIVE,
    "rollout.probe_tolerance": POSITIVE,
    "algorithm.iterations": AT_LEAST_ONE,
    "algorithm.batch_ratio": AT_LEAST_ONE,
    "algorithm.overlong_buffer": NOT_NEGATIVE,
    "algorithm.overlong_penalty": POSITIVE,
    "algorithm.kl_coef": NOT_NEGATIVE,
    "algorithm.kl_target": POSITIVE,
    "algorithm.kl_horizon": AT_LEAST_ONE,
    "algorithm.entropy_coef": FINITE,
    "algorithm.rollout_correction.lower": NOT_NEGATIVE,
    "algorithm.rollout_correction.upper": POSITIVE,
    "algorithm.rollout_correction.reject_lower": POSITIVE,
    "algorithm.rollout_correction.reject_upper": POSITIVE,
    "algorithm.weight_lag": NOT_NEGATIVE,
    "algorithm.log_prob_noise": NOT_NEGATIVE,
    "actor.lr": POSITIVE,
    "actor.micro_batch_tokens": AT_LEAST_ONE,
    "actor.log_prob_chunk_tokens": AT_LEAST_ONE,
    "actor.megatron.tensor_parallel_size": AT_LEAST_ONE,
    "actor.megatron.pipeline_parallel_size": AT_LEAST_ONE,
    "actor.megatron.virtual_pipeline_parallel_size": AT_LEAST_ONE,
    "actor.megatron.expert_parallel_size": AT_LEAST_ONE,
    "actor.megatron.context_parallel_size": AT_LEAST_ONE,
    "actor.megatron.first_stage_layers": AT_LEAST_ONE,
    "actor.megatron.last_stage_layers": AT_LEAST_ONE,
    "actor.optimizer.adam_beta1": BELOW_ONE,
    "actor.optimizer.adam_beta2": BELOW_ONE,
    "actor.optimizer.adam_eps": POSITIVE,
    "actor.optimizer.weight_decay": NOT_NEGATIVE,
    "actor.optimizer.clip_grad": NOT_NEGATIVE,
    "actor.optimizer.warmup_ratio": SHARE,
    "actor.optimizer.min_lr_ratio": SHARE,
    "reward.num_processes": AT_LEAST_ONE,
    "reward.timeout_seconds": POSITIVE,
    "reward.first_call_timeout_seconds": POSITIVE,
    "reward.pass_threshold": FINITE,
    "reward.lowest": FINITE,
    "reward.highest": FINITE,
    "reward.max_answer_chars": AT_LEAST_ONE,
    "trainer.num_workers": AT_LEAST_ONE,
    "trainer.nodes": AT_LEAST_ONE,
    "trainer.workers_per_node": AT_LEAST_ONE,
    "trainer.cpus_per_worker": AT_LEAST_ONE,
    "trainer.total_steps": AT_LEAST_ONE,
    "trainer.seed": SEED,
    "trainer.cluster_wait_seconds": NOT_NEGATIVE,
    "trainer.save_every": NOT_NEGATIVE,
    "trainer.keep_checkpoints": NOT_NEGATIVE,
    "trainer.val_every": NOT_NEGATIVE,
    "trainer.val_temperature": NOT_NEGATIVE,
    "trainer.val_top_p": POSITIVE_SHARE,
    "trainer.val_samples": AT_LEAST_ONE,
    "trainer.generations_every": NOT_NEGATIVE,
    "trainer.keep_generations": NOT_NEGATIVE,
    "trainer.save_rollouts_every": NOT_NEGATIVE,
    "watch.kl": POSITIVE,
    "watch.ess": BETWEEN,
    "watch.entropy_slope": POSITIVE,
    "watch.length_drift": POSITIVE,
    "watch.zero_reward_streak": AT_LEAST_ONE,
    "watch.window": AT_LEAST_TWO,
    "watch.saved_batches": NOT_NEGATIVE,
}
"""A number that may also be null is checked when it is there."""

DTYPES = ("auto", "float32", "bfloat16")

NAMES: dict[str, Iterable[str]] = {
    "data.overlong": ("filter", "cut"),
    "data.curriculum": ("none", "order", "widen"),
    "rollout.dtype": DTYPES,
    "rollout.load_format": ("direct", "load_weights"),
    "rollout.probe_action": ("stop", "warn"),
    "algorithm.advantage": ADVANTAGES,
    "algorithm.loss_aggregation": AGGREGATIONS,
    "algorithm.kl_estimator": KL_ESTIMATORS,
    "algorithm.old_log_probs": ("recompute", "rollout"),
    "actor.dtype": DTYPES,
    "actor.attention": ("auto", "flash_attn", "torch_varlen", "sdpa"),
    "actor.optimizer.schedule": ("constant", "cosine"),
    "reward.all_failed_action": STEP_ACTIONS,
    "trainer.device": ("auto", "cpu", "cuda"),
    "watch.kl_action": PASS_ACTIONS,
    "watch.ess_action": PASS_ACTIONS,
    "watch.non_finite_action": PASS_ACTIONS,
    "watch.entropy_slope_action": STEP_ACTIONS,
    "watch.length_drift_action": STEP_ACTIONS,
    "watch.zero_reward_streak_action": STEP_ACTIONS,
    "watch.collapse_action": STEP_ACTIONS,
}
"""Names that a setting may have. The policy loss is checked while its knobs are filled in."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A setting that does nothing where another one has one of some values; then it must be left out.

    Example: ``Idle("algorithm.kl_in_reward", "algorithm.kl_coef", (0,), "set kl_coef above 0")``.
    """

    key: str
    other: str
    at: tuple[Any, ...]
    remedy: str


IDLE = (
    Idle("algorithm.kl_in_reward", "algorithm.kl_coef", (0,), "set kl_coef above 0"),
    Idle("algorithm.kl_target", "algorithm.kl_coef", (0,), "set kl_coef above 0"),
    Idle("algorithm.kl_horizon", "algorithm.kl_target", (None,), "set kl_target, which steers kl_coef"),
    Idle(
        "algorithm.overlong_penalty",
        "algorithm.overlong_buffer",
        (0,),
        "set overlong_buffer to the tokens before the limit over which the punishment grows",
    ),
    Idle("algorithm.balance_mini_batches", "algorithm.batch_ratio", (1,), "raise batch_ratio"),
    Idle("actor.optimizer.min_lr_ratio", "actor.optimizer.schedule", ("constant",), "set the schedule to cosine"),
    Idle("data.curriculum_steps", "data.curriculum", ("none", "order"), "set data.curriculum=widen"),
)


def find_problems(config: Config) -> Iterator[Problem]:
    """Every number lies in its range, every name exists, every tracker is installed, every setting does something."""
    for key, allowed in RANGES.items():
        value = value_at(config, key)
        if value is not None and not allowed.holds(value):
            yield Problem((key,), f"{key}={value} must be {allowed.words}")
    for key, names in NAMES.items():
        yield from one_of(key, value_at(config, key), names)
    for message in check_trackers(config.trainer.trackers):
        yield Problem(("trainer.trackers",), f"trainer.trackers: {message}")
    for idle in IDLE:
        value, other = value_at(config, idle.key), value_at(config, idle.other)
        if other in idle.at and value != value_at(Config(), idle.key):
            yield Problem(
                (idle.key, idle.other),
                f"{idle.key}={value} does nothing at {idle.other}={other}; {idle.remedy}, or leave {idle.key} out",
            )


def stops(config: Config) -> Iterator[Problem]:
    """An empty text would end every response before it begins."""
    if "" in config.rollout.stop:
        yield Problem(("rollout.stop",), f"rollout.stop={config.rollout.stop} has an empty text; leave it out")


def template_arguments(config: Config) -> Iterator[Problem]:
    """Arguments of the chat template are what JSON can write without brackets."""
    for name, value in config.data.chat_template_kwargs.items():
        key = f"data.chat_template_kwargs.{name}"
        finite = isfinite(value) if isinstance(value, float) else isinstance(value, str | bool | int)
        if value is not None and not finite:
            yield Problem((key,), f"{key}={value!r} must be a text, a finite number, true, false or null")


def find_example_problems(config: Config) -> Iterator[Problem]:
    """Examples are turns of a chat before the question: user, assistant, and so on, each with a text."""
    key, examples = "data.examples", config.data.examples or []
    for number, message in enumerate(examples, start=1):
        role = "user" if number % 2 else "assistant"
        if set(message) != {"role", "content"}:
            yield Problem(
                (key,), f"{key}: message {number} has the keys {sorted(message)}; it must have role and content"
            )
        elif message["role"] != role:
            hint = "; a system message goes into data.system_prompt" if message["role"] == "system" else ""
            yield Problem(
                (key,),
                f"{key}: message {number} has the role '{message['role']}', where '{role}' must be: user and assistant "
                f"take turns{hint}",
            )
        elif not message["content"].strip():
            yield Problem((key,), f"{key}: message {number} has no text as its content")
    if len(examples) % 2:
        yield Problem(
            (key,),
            f"{key} has {len(examples)} messages; it must end with the assistant's, since the problem follows",
        )


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name)
    return node


RULES = (find_problems, stops, template_arguments, find_example_problems)
