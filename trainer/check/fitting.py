"""The device that a check estimates for, and settings near those that do not fit it: which few changes do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import ModelShape
from trainer.check.memory import GIB, Device, estimate_memory, longest_sequence
from trainer.config import Config
from trainer.config.problem import Problem, divisors

USUAL_GPU_GIB = 80.0
"""An A100 or H100; what is assumed when nothing is said."""

MOST_ALTERNATIVES = 3

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

    Tried are larger tensor parallelism, recomputation, offload, smaller micro-batches and a smaller share for vLLM.
    """
    found = []
    for changes, changed in _variants(config):
        if not changes or layout_rules(changed, shape):
            continue
        estimate = estimate_memory(changed, shape, device)
        if estimate.fits(device):
            found.append(Alternative(changes, estimate.peak))
    found.sort(key=lambda alternative: (len(alternative.changes), -alternative.peak))
    distinct: list[Alternative] = []
    for alternative in found:
        # Changing more than what is enough, or the same settings further, is no news.
        if not any(kept.changes.keys() <= alternative.changes.keys() for kept in distinct):
            distinct.append(alternative)
    return distinct[:MOST_ALTERNATIVES]


def _variants(config: Config) -> Iterator[tuple[Changes, Config]]:
    """Every combination of the settings that trade memory, with what it changes."""
    megatron, actor, rollout = config.actor.megatron, config.actor, config.rollout
    longest = longest_sequence(config)
    tps = [size for size in divisors(config.trainer.world_size) if size >= megatron.tensor_parallel_size]
    budgets = [tokens for part in (1, 2, 4) if (tokens := actor.micro_batch_tokens // part) >= longest]
    own_share = rollout.gpu_memory_utilization
    shares = sorted({own_share, *(share for share in (0.6, 0.5, 0.4) if share < own_share)})
    recomputes, offloads = sorted({megatron.recompute, True}), sorted({megatron.offload, True})
    for tp, recompute, offload, tokens, share in product(
        tps, recomputes, offloads, budgets or [actor.micro_batch_tokens], shares
    ):
        wanted = {
            "actor.megatron.tensor_parallel_size": (megatron.tensor_parallel_size, tp),
            "actor.megatron.recompute": (megatron.recompute, recompute),
            "actor.megatron.offload": (megatron.offload, offload),
            "actor.micro_batch_tokens": (actor.micro_batch_tokens, tokens),
            "rollout.gpu_memory_utilization": (own_share, share),
        }
        changes = {key: str(after).lower() for key, (before, after) in wanted.items() if before != after}
        layout = replace(megatron, tensor_parallel_size=tp, recompute=recompute, offload=offload)
        yield (
            changes,
            replace(
                config,
                actor=replace(actor, megatron=layout, micro_batch_tokens=tokens),
                rollout=replace(rollout, gpu_memory_utilization=share),
            ),
        )
