"""The device that a check estimates for, and settings near those that do not fit it: which few changes do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import torch

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import ModelShape
from trainer.check.memory import GIB, Device, estimate_memory, longest_sequence
from trainer.config import Config
from trainer.config.problem import Problem, divisors

USUAL_GPU_GIB = 80.0
"""An A100 or H100; what is assumed when nothing is said."""

MOST_ALTERNATIVES = 3
COMFORTABLE = 0.95
"""Share of a device up to which advice rather goes: an estimate is no measurement."""

Changes = dict[str, str]

LayoutRules = Callable[[Config, ModelShape], Sequence[Problem]]
"""What is wrong with the layouts of a config, given its model."""


def device_of(config: Config, gib: float | None) -> Device:
    """The device of ``trainer.device``, where "auto" is a GPU when this machine has one or the user speaks of one.

    Args:
        config: the run.
        gib: memory of a GPU, when the user names it.

    Raises:
        ConfigError: that is no memory, or the run is on a CPU.
    """
    name = config.trainer.device
    if gib is not None and not 0 < gib < float("inf"):
        raise ConfigError(f"--gpu-memory {gib:g}: name the memory of one GPU in GiB, above 0, e.g. 80")
    if gib is not None and name == "cpu":
        raise ConfigError(f"--gpu-memory {gib:g}: trainer.device=cpu uses no GPU; leave one of them out")
    is_gpu = name == "cuda" or (name == "auto" and (gib is not None or torch.cuda.is_available()))
    return Device(is_gpu=is_gpu, bytes=int((gib or USUAL_GPU_GIB) * GIB))


@dataclass(frozen=True, slots=True)
class Alternative:
    """Settings that fit.

    Example: ``Alternative({"actor.megatron.recompute": "true"}, 60 * GIB)``.
    """

    changes: Changes
    peak: int


def alternatives(config: Config, shape: ModelShape, device: Device, layout_rules: LayoutRules) -> list[Alternative]:
    """A few ways to fit: fewest changes first, of the same settings the ones that change least.

    Tensor parallelism of either engine is raised inside a node only: it talks in every layer.
    """
    choices = _choices(config, shape)
    found: list[Alternative] = []
    for number in range(1, len(choices) + 1):
        for keys in combinations(choices, number):
            # Changing more than what is enough is no news.
            if any(kept.changes.keys() <= set(keys) for kept in found):
                continue
            values = [choices[key] for key in keys]
            tried = (_tried(config, dict(zip(keys, each, strict=True)), shape, device) for each in product(*values))
            fitting = [
                alternative
                for changed, alternative in tried
                if alternative is not None and not layout_rules(changed, shape)
            ]
            if fitting:
                comfortable = [each for each in fitting if each.peak <= COMFORTABLE * device.bytes]
                found.append(max(comfortable or fitting, key=lambda alternative: alternative.peak))
        if len(found) >= MOST_ALTERNATIVES:
            break
    return sorted(found, key=lambda each: (len(each.changes), -each.peak))[:MOST_ALTERNATIVES]


def _choices(config: Config, shape: ModelShape) -> dict[str, list[Any]]:
    """What else each setting that trades memory may be, the one in the recipe left out."""
    megatron, actor, rollout = config.actor.megatron, config.actor, config.rollout
    world, on_a_node = divisors(config.trainer.world_size), divisors(config.trainer.workers_on_a_node)
    longest = longest_sequence(config)
    budgets = (actor.micro_batch_tokens // part for part in (2, 4))
    choices = {
        "actor.megatron.recompute": [True] if not megatron.recompute else [],
        "actor.megatron.offload": [True] if not megatron.offload else [],
        "actor.megatron.sequence_parallel": [True] if not megatron.sequence_parallel else [],
        "actor.megatron.tensor_parallel_size": [size for size in on_a_node if size > megatron.tensor_parallel_size],
        "actor.megatron.pipeline_parallel_size": [size for size in world if size > megatron.pipeline_parallel_size],
        "actor.megatron.expert_parallel_size": [
            size for size in world if shape.experts and size > megatron.expert_parallel_size
        ],
        "rollout.tensor_parallel_size": [size for size in on_a_node if size > rollout.tensor_parallel_size],
        "actor.micro_batch_tokens": [tokens for tokens in budgets if tokens >= longest],
        "rollout.gpu_memory_utilization": [
            share for share in (0.6, 0.5, 0.4) if share < rollout.gpu_memory_utilization
        ],
    }
    return {key: values for key, values in choices.items() if values}


def _tried(
    config: Config, settings: dict[str, Any], shape: ModelShape, device: Device
) -> tuple[Config, Alternative | None]:
    """The config with these settings, and the alternative where its estimate fits."""
    changed = config
    for key, value in settings.items():
        changed = _with(changed, key, value)
    try:
        estimate = estimate_memory(changed, shape, device)
    except ConfigError:  # layers or ranks that do not divide
        return changed, None
    changes = {key: str(value).lower() for key, value in settings.items()}
    return changed, Alternative(changes, estimate.peak) if estimate.fits(device) else None


def _with(section: Any, key: str, value: Any) -> Any:
    """A copy of nested dataclasses in which a dotted key has another value."""
    name, _, rest = key.partition(".")
    return replace(section, **{name: _with(getattr(section, name), rest, value) if rest else value})
