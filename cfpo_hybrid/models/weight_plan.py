"""The reshard plan of a model between two layouts, made once a process. Pure: no tensor and no process is touched."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from cfpo_hybrid.models.megatron_specs import megatron_specs
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.models.stages import EQUAL_STAGES, PipelineCut
from cfpo_hybrid.models.vllm_specs import vllm_specs
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding.plan import ReshardPlan
from cfpo_hybrid.resharding.planner import build_plan
from cfpo_hybrid.resharding.shard_spec import ShardSpec

RankSpecs = tuple[tuple[ShardSpec, ...], ...]
"""The shards of each rank; replicas share one tuple."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """A model and the layouts it moves between: from Megatron's layout to vLLM's, over the same ranks.

    Args:
        shape: the model.
        training: Megatron's ranks.
        rollout: vLLM's ranks.
        ranks_per_node: consecutive ranks that share a machine.
        cut: of Megatron's stages.
    """

    shape: ModelShape
    training: ParallelLayout
    rollout: ParallelLayout
    ranks_per_node: int
    cut: PipelineCut = EQUAL_STAGES


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A third of the time for large mixtures went into looking for garbage among a million rectangles that all stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@lru_cache(maxsize=4)
@_collector_paused()
def weight_plan(handover: Handover) -> ReshardPlan:
    """Who copies what to whom.

    Raises:
        ModelError: the model does not divide over a layout.
        ConfigError: its layers do not divide over the stages.
    """
    return build_plan(training_specs(handover), rollout_specs(handover), handover.ranks_per_node)


@lru_cache(maxsize=4)
@_collector_paused()
def training_specs(handover: Handover) -> RankSpecs:
    """The shards of every Megatron rank."""
    layout, specs_at = handover.training, {}
    places = []
    for rank in range(layout.world_size):
        at = layout.coordinate(rank)
        # Data- and context-parallel peers hold copies, but for their shares of the experts.
        place = (at.pp, at.tp, layout.expert_rank(at))
        places.append(place)
        if place not in specs_at:
            specs_at[place] = tuple(megatron_specs(handover.shape, layout, at, handover.cut))
    return tuple(specs_at[place] for place in places)


@lru_cache(maxsize=4)
@_collector_paused()
def rollout_specs(handover: Handover) -> RankSpecs:
    """The shards of every vLLM rank."""
    tp = handover.rollout.tp
    of_replica = [tuple(vllm_specs(handover.shape, tp, rank)) for rank in range(tp)]
    return tuple(of_replica[handover.rollout.coordinate(rank).tp] for rank in range(handover.rollout.world_size))
