"""The one place that sets up process groups for Megatron-core and asks it where this rank sits."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from cfpo_hybrid.errors import DispatchError
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from workers.megatron.cpu_support import megatron_on


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelGroups:
    """This rank's place in the training layout, and the ranks it works with.

    Args:
        tp: tensor-parallel peers, None when there are none.
        pp: the other stages of this replica, None when there are none.
        dp: ranks that hold the same parameters and other rows.
    """

    layout: ParallelLayout
    rank: int
    coordinate: Coordinate
    tp: dist.ProcessGroup | None
    pp: dist.ProcessGroup | None
    dp: dist.ProcessGroup

    @property
    def is_first_stage(self) -> bool:
        """Holds the embedding."""
        return self.coordinate.pp == 0

    @property
    def is_last_stage(self) -> bool:
        """Holds the language-model head, and computes the loss."""
        return self.coordinate.pp == self.layout.pp - 1


def initialize_parallel(
    layout: ParallelLayout, *, chunks: int = 1, rank: int, device: torch.device, seed: int
) -> ParallelGroups:
    """Creates Megatron-core's process groups over torch's world, which must exist; a process's later models share them.

    Args:
        layout: of the training engine; its world is all processes.
        chunks: that each pipeline stage is cut into.
        rank: this process's.
        device: where the model will be.
        seed: of Megatron's random-number tracker.

    Raises:
        DispatchError: torch's world is not there or has another size, or Megatron-core has another layout already.
    """
    world = dist.get_world_size() if dist.is_initialized() else 0
    if world != layout.world_size:
        raise DispatchError(f"{layout} needs {layout.world_size} processes, torch.distributed has {world}")
    with megatron_on(device):
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tp,
                pipeline_model_parallel_size=layout.pp,
                context_parallel_size=layout.cp,
                expert_model_parallel_size=layout.ep,
                expert_tensor_parallel_size=1,
                create_gloo_process_groups=False,
            )
        # No process group hangs on the chunks: each run of a worker may have its own.
        parallel_state.set_virtual_pipeline_model_parallel_world_size(chunks if chunks > 1 else None)
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    coordinate = layout.coordinate(rank)
    expected = (coordinate.tp, coordinate.pp, layout.expert_rank(coordinate))
    found = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
    )
    if found != expected:
        raise DispatchError(f"Megatron-core places rank {rank} at (tp, pp, ep)={found}, {layout} at {expected}")
    megatron: Any = parallel_state  # its own annotations also allow "no group", which cannot be here
    return ParallelGroups(
        layout=layout,
        rank=rank,
        coordinate=coordinate,
        tp=megatron.get_tensor_model_parallel_group() if layout.tp > 1 else None,
        pp=megatron.get_pipeline_model_parallel_group() if layout.pp > 1 else None,
        dp=megatron.get_data_parallel_group(),
    )
