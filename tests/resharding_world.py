"""Hugging Face tensors of a small shape, cut by shard specs, for tests of plans and transfers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cfpo_hybrid.models import Experts, ModelShape, PipelineCut
from cfpo_hybrid.models.engine_specs import megatron_specs, vllm_specs
from cfpo_hybrid.models.hf_tensors import hf_shapes
from cfpo_hybrid.models.stages import EQUAL_STAGES
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding import Copy, ReshardPlan, Route, ShardSpec

SMALL = ModelShape(
    family="qwen2",
    num_layers=3,
    hidden_size=16,
    intermediate_size=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=19,
    max_position_embeddings=64,
    rope_theta=10000.0,
    rope_scaling=None,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    tied_embeddings=False,
)


def small_shape(**changes: Any) -> ModelShape:
    """``SMALL``, of a few hundred parameters, with changes; families differ as the real ones do."""
    shape = replace(SMALL, **changes)
    return replace(
        shape,
        qkv_bias=shape.family == "qwen2",
        qk_norm=shape.family.startswith("qwen3"),
        experts=Experts(count=4, per_token=2, intermediate_size=8, normalised=True) if "moe" in shape.family else None,
    )


def distinct_tensors(shape: ModelShape, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All Hugging Face tensors; no two elements of the model are equal (in fp32)."""
    tensors, first = {}, 1
    for name, size in hf_shapes(shape).items():
        count = int(torch.Size(size).numel())
        tensors[name] = torch.arange(first, first + count, dtype=torch.float32).view(size).to(dtype)
        first += count
    return tensors


def shards_of(specs: Iterable[ShardSpec], tensors: Mapping[str, Tensor], padding: float = 0.0) -> dict[str, Tensor]:
    """The local parameters that the specs describe."""
    parameters = {}
    for spec in specs:
        local = torch.full(spec.shape, padding, dtype=next(iter(tensors.values())).dtype)
        for piece in spec.pieces:
            local[piece.local.slices] = tensors[piece.hf_name][piece.hf.slices]
        parameters[spec.name] = local
    return parameters


def megatron_world(shape: ModelShape, layout: ParallelLayout, cut: PipelineCut = EQUAL_STAGES) -> list[list[ShardSpec]]:
    """Specs of every training rank."""
    return [megatron_specs(shape, layout, layout.coordinate(rank), cut) for rank in range(layout.world_size)]


def vllm_world(shape: ModelShape, world_size: int, tp: int) -> list[list[ShardSpec]]:
    """Specs of every rollout rank."""
    return [vllm_specs(shape, tp, rank % tp) for rank in range(world_size)]


def execute_in_one_process(
    plan: ReshardPlan, sources: Sequence[Mapping[str, Tensor]], destinations: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Carries a plan out without messages; returns how often each destination element was written."""
    writes = [{name: torch.zeros_like(tensor) for name, tensor in rank.items()} for rank in destinations]
    for route, copy in all_copies(plan):
        target, (name, area) = route.destination_rank, copy.destination
        destinations[target][name][area.slices] = sources[route.source_rank][copy.source.name][copy.source.area.slices]
        writes[target][name][area.slices] += 1
    return writes


def all_copies(plan: ReshardPlan) -> Iterator[tuple[Route, Copy]]:
    """Every copy of a plan, and the route that it is of."""
    return ((route, copy) for routes in plan.routes for route in routes for copy in plan.copies(route))
