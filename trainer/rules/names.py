"""Rules about names: each must be one that exists, and the nearest one is named where it does not."""

from collections.abc import Iterator

from cfpo_hybrid.algorithms.advantage import ADVANTAGES
from cfpo_hybrid.algorithms.aggregate import AGGREGATIONS
from cfpo_hybrid.algorithms.kl import KL_ESTIMATORS
from trainer.config.problem import Problem, one_of
from trainer.config.schema import Config
from trainer.tracking import check_trackers

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16")
ATTENTIONS = ("auto", "flash_attn", "torch_varlen", "sdpa")
SCHEDULES = ("constant", "cosine")
LOAD_FORMATS = ("direct", "load_weights")
PROBE_ACTIONS = ("stop", "warn")


def known_names(config: Config) -> Iterator[Problem]:
    """Registries and enumerations. The policy loss is checked while its knobs are filled in."""
    yield from one_of("algorithm.advantage", config.algorithm.advantage, ADVANTAGES.names())
    yield from one_of("algorithm.loss_aggregation", config.algorithm.loss_aggregation, AGGREGATIONS)
    yield from one_of("algorithm.kl_estimator", config.algorithm.kl_estimator, KL_ESTIMATORS)
    yield from one_of("actor.dtype", config.actor.dtype, DTYPES)
    yield from one_of("actor.attention", config.actor.attention, ATTENTIONS)
    yield from one_of("actor.optimizer.schedule", config.actor.optimizer.schedule, SCHEDULES)
    yield from one_of("rollout.dtype", config.rollout.dtype, DTYPES)
    yield from one_of("rollout.load_format", config.rollout.load_format, LOAD_FORMATS)
    yield from one_of("rollout.probe_action", config.rollout.probe_action, PROBE_ACTIONS)
    yield from one_of("trainer.device", config.trainer.device, DEVICES)


def trackers(config: Config) -> Iterator[Problem]:
    """Trackers exist and are installed."""
    for message in check_trackers(config.trainer.trackers):
        yield Problem(("trainer.trackers",), f"trainer.trackers: {message}")


RULES = (known_names, trackers)
