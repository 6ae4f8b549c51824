"""The reshard plan of a model between two layouts, made once a process. Pure: no tensor and no process is touched."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from cfpo_hybrid.errors import ReshardError
from cfpo_hybrid.models.engine_specs import megatron_specs, vllm_specs
from cfpo_hybrid.models.shape import ModelShape
from cfpo_hybrid.models.stages import EQUAL_STAGES, PipelineCut
from cfpo_hybrid.parallel_layout import ParallelLayout
from cfpo_hybrid.resharding.plan import ReshardPlan
from cfpo_hybrid.resharding.planner import build_plan
from cfpo_hybrid.resharding.shard_spec import ShardSpec

ProcessSpecs = tuple[tuple[ShardSpec, ...], ...]
"""The shards of each process, none where it has no rank of the engine; replicas share one tuple."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which process has which rank of either engine.

    Example: ``Placement.colocated(4)`` has both engines in processes 0 to 3; ``Placement.separate(4, 2)`` trains in
    processes 0 to 3 and generates in 4 and 5.

    Args:
        training: the process of each training rank.
        rollout: the process of each rollout rank.

    Raises:
        ReshardError: a process would have two ranks of an engine.
    """

    training: tuple[int, ...]
    rollout: tuple[int, ...]

    def __post_init__(self) -> None:
        for engine in (self.training, self.rollout):
            if len(set(engine)) != len(engine):
                raise ReshardError(f"processes {engine} are not one for each rank of an engine")

    @classmethod
    def colocated(cls, world_size: int) -> "Placement":
        """Rank ``i`` of both engines is process ``i``."""
        return cls(tuple(range(world_size)), tuple(range(world_size)))

    @classmethod
    def separate(cls, training: int, rollout: int) -> "Placement":
        """So many training processes, and so many rollout processes after them."""
        return cls(tuple(range(training)), tuple(range(training, training + rollout)))

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 + max(*self.training, *self.rollout)


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """A model, the layouts it moves between, from Megatron's to vLLM's, and the processes of both.

    Args:
        shape: the model.
        training: Megatron's ranks.
        rollout: vLLM's ranks.
        placement: which process has which of them.
        ranks_per_node: consecutive processes that share a machine.
        cut: of Megatron's stages.

    Raises:
        ReshardError: the placement is not one of these layouts.
    """

    shape: ModelShape
    training: ParallelLayout
    rollout: ParallelLayout
    placement: Placement
    ranks_per_node: int
    cut: PipelineCut = EQUAL_STAGES

    def __post_init__(self) -> None:
        for layout, processes in ((self.training, self.placement.training), (self.rollout, self.placement.rollout)):
            if layout.world_size != len(processes):
                raise ReshardError(f"{layout} of {layout.world_size} ranks is placed in {len(processes)} processes")


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
def training_specs(handover: Handover) -> ProcessSpecs:
    """The shards that Megatron has in each process."""
    layout, specs_at = handover.training, {}
    of_ranks = []
    for rank in range(layout.world_size):
        at = layout.coordinate(rank)
        # Data- and context-parallel peers hold copies, but for their shares of the experts.
        shards = (at.pp, at.tp, layout.expert_rank(at))
        if shards not in specs_at:
            specs_at[shards] = tuple(megatron_specs(handover.shape, layout, at, handover.cut))
        of_ranks.append(specs_at[shards])
    return _by_process(of_ranks, handover.placement.training, handover.placement.world_size)


@lru_cache(maxsize=4)
@_collector_paused()
def rollout_specs(handover: Handover) -> ProcessSpecs:
    """The shards that vLLM has in each process."""
    layout = handover.rollout
    of_replica = [tuple(vllm_specs(handover.shape, layout.tp, rank)) for rank in range(layout.tp)]
    of_ranks = [of_replica[layout.coordinate(rank).tp] for rank in range(layout.world_size)]
    return _by_process(of_ranks, handover.placement.rollout, handover.placement.world_size)


def _by_process(of_ranks: Sequence[tuple[ShardSpec, ...]], processes: Sequence[int], world_size: int) -> ProcessSpecs:
    at = dict(zip(processes, of_ranks, strict=True))
    return tuple(at.get(process, ()) for process in range(world_size))
