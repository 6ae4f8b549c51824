"""What ``cfpo check`` prints: the run in numbers, its memory, and what to change where it does not fit."""

import math
from collections.abc import Iterator

from cfpo_hybrid.models import ModelShape
from trainer.check.fitting import LayoutRules, alternatives
from trainer.check.memory import (
    GIB,
    Device,
    MemoryEstimate,
    MemoryPhase,
    estimate_memory,
    longest_sequence,
    micro_batch_tokens,
)
from trainer.config import Config
from trainer.config.model import LoadedConfig
from trainer.data.inspect import describe_files
from trainer.terminal.words import count, pressure_line, training_line

LABEL_WIDTH = 20


def report(loaded: LoadedConfig, device: Device, layout_rules: LayoutRules) -> str:
    """The whole text, without a newline at its end.

    Args:
        loaded: the run.
        device: of a worker.
        layout_rules: asked of each layout that might fit better.
    """
    estimate = estimate_memory(loaded.config, loaded.model.shape, device)
    lines = [
        *_rows(_model_and_workers(loaded, device)),
        *_rows(_batches(loaded.config)),
        *_rows(("data", line) for line in describe_files(loaded.config.data)),
        *_rows(_length(loaded.config)),
        *_rows(_memory(loaded.config, estimate, device)),
        *_verdict(loaded, estimate, device, layout_rules),
    ]
    return "\n".join(lines)


def fits(loaded: LoadedConfig, device: Device) -> bool:
    """Whether the estimate stays below the device's memory and leaves room for one sequence at least."""
    return estimate_memory(loaded.config, loaded.model.shape, device).fits(device)


Row = tuple[str, str]


def _rows(rows: Iterator[Row]) -> list[str]:
    return [f"{label:<{LABEL_WIDTH}}{text}" for label, text in rows]


def _model_and_workers(loaded: LoadedConfig, device: Device) -> Iterator[Row]:
    config, shape = loaded.config, loaded.model.shape
    yield (
        "model",
        f"{config.model.path}: {shape.family}, {shape.num_parameters / 1e9:.3g}B parameters, {shape.num_layers} layers, "
        f"{shape.num_heads} heads, {shape.num_kv_heads} key-value heads; from {loaded.model.source}",
    )
    rollout, trainer = config.rollout_layout, config.trainer
    kind = "cuda" if device.is_gpu else "cpu"
    yield (
        "workers",
        f"{trainer.world_size} on {count(trainer.nodes, 'node')} ({kind}): "
        f"{training_line(config.train_layout, config.actor.megatron.cut)}; "
        f"vLLM {count(rollout.dp, 'replica')} of tp {rollout.tp}",
    )


def _batches(config: Config) -> Iterator[Row]:
    algorithm, data = config.algorithm, config.data
    prompts, group = data.train_batch_size, config.rollout.group_size
    longest = longest_sequence(config)
    yield (
        "a rollout",
        f"{prompts} prompts x {group} responses = {config.responses_per_step} responses of at most "
        f"{data.max_prompt_length} + {data.max_response_length} = {longest} tokens; about "
        f"{_share(config.responses_per_step, config.rollout_layout.dp)} for each vLLM replica",
    )
    ratio, rows = algorithm.batch_ratio, config.responses_per_step // algorithm.batch_ratio
    yield (
        "mini-batches",
        f"{ratio} of {prompts // ratio} prompts = {rows} responses; about {_share(rows, config.train_layout.dp)} for each "
        f"Megatron replica, in micro-batches of up to {micro_batch_tokens(config)} tokens",
    )
    yield "off-policy", pressure_line(config.plan)


def _length(config: Config) -> Iterator[Row]:
    trainer, optimizer = config.trainer, config.actor.optimizer
    prompts = trainer.total_steps * config.data.train_batch_size
    rounds = config.rollout.generation_rounds
    drawn = f"{prompts} prompts" if rounds == 1 else f"{prompts} to {prompts * rounds} prompts"
    yield (
        "the run",
        f"{count(trainer.total_steps, 'rollout step')}, {count(config.total_updates, 'optimizer step')}, {drawn}",
    )
    warmup = math.ceil(optimizer.warmup_ratio * config.total_updates)
    yield (
        "learning rate",
        f"{config.actor.lr:g}, {optimizer.schedule}, {count(warmup, 'optimizer step')} of warm-up",
    )


def _memory(config: Config, estimate: MemoryEstimate, device: Device) -> Iterator[Row]:
    where = f"per device of {_gib(device.bytes)}" if device.is_gpu else "per worker process"
    yield "memory", f"estimated {where}, not measured:"
    for phase in estimate.phases:
        yield f"  {phase.name}", _phase(phase)
    yield (
        "  KV cache",
        f"{_gib(estimate.kv_cache_bytes)}: {count(estimate.full_sequences, 'sequence')} of full length at one "
        "time, in each vLLM replica",
    )
    if estimate.host.parts:
        on_a_node = f"{_gib(estimate.host.total * config.trainer.workers_on_a_node)} on a node"
        yield "  host memory", f"{_phase(estimate.host)} for each worker, {on_a_node}"


def _phase(phase: MemoryPhase) -> str:
    parts = " + ".join(f"{name} {_gib(size)}" for name, size in phase.parts.items())
    return f"{_gib(phase.total)} = {parts}"


def _verdict(
    loaded: LoadedConfig, estimate: MemoryEstimate, device: Device, layout_rules: LayoutRules
) -> Iterator[str]:
    config, shape = loaded.config, loaded.model.shape
    if not device.is_gpu:
        yield f"{'':<{LABEL_WIDTH}}{_gib(estimate.peak * config.trainer.workers_on_a_node)} on a node at most"
    elif estimate.fits(device):
        yield f"fits: {_gib(estimate.peak)} of {_gib(device.bytes)} at the peak"
    elif estimate.peak > device.bytes:
        yield f"does not fit: {_gib(estimate.peak)} of {_gib(device.bytes)} at the peak"
        yield from _advice(config, shape, device, layout_rules)
    else:
        yield (
            f"does not fit: one sequence of {longest_sequence(config)} tokens takes "
            f"{_gib(estimate.kv_token_bytes * longest_sequence(config))} of KV cache, and vLLM's has "
            f"{_gib(estimate.kv_cache_bytes)}; raise rollout.gpu_memory_utilization="
            f"{config.rollout.gpu_memory_utilization:g} or rollout.tensor_parallel_size"
        )


def _advice(config: Config, shape: ModelShape, device: Device, layout_rules: LayoutRules) -> Iterator[str]:
    found = alternatives(config, shape, device, layout_rules)
    for alternative in found:
        changes = " ".join(f"{key}={value}" for key, value in alternative.changes.items())
        yield f"  would fit: {changes} ({_gib(alternative.peak)})"
    if not found:
        yield (
            f"  no tensor or pipeline parallelism, recomputation, offload or micro-batch size makes it fit on "
            f"{count(config.trainer.world_size, 'worker')}; use more workers or a larger device"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.0f} MiB"


def _share(number: int, parts: int) -> str:
    whole = number / parts
    return f"{whole:.0f}" if number % parts == 0 else f"{whole:.1f}"
