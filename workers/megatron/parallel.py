"""The one place that sets up what Megatron-core keeps for a whole process: its process groups and its random state.

The ranks of a training layout are those of a torch world of their own: Megatron-core takes the size and the ranks of
torch's world for its own, and parts of it (experts, schedules) look its groups up in the process's global state. So a pool
of processes that trains joins a world by itself; whatever carries weights to another pool is a group beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, DispatchError
from cfpo_hybrid.parallel_layout import Coordinate, ParallelLayout
from workers.megatron.cpu_support import megatron_on

_TRACKER = "tracker."


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelGroups:
    """This rank's place in the training layout, and the ranks it works with.

    Args:
        layout: over all ranks of torch's world.
        rank: this process's.
        coordinate: of this rank.
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
        layout: of the training engine.
        chunks: that each pipeline stage is cut into.
        rank: this process's in the layout.
        device: where the model will be.
        seed: of Megatron's random-number tracker.

    Raises:
        ConfigError: the layout splits sequences.
        DispatchError: the layout's ranks are not those of torch's world, or Megatron-core has another layout already.
    """
    _check_world(layout, rank)
    with megatron_on(device):
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tp,
                pipeline_model_parallel_size=layout.pp,
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


def _check_world(layout: ParallelLayout, rank: int) -> None:
    if layout.cp != 1:
        raise ConfigError(
            f"actor.megatron.context_parallel_size={layout.cp} must be 1: training does not split sequences"
        )
    place = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 0)
    if place != (rank, layout.world_size):
        raise DispatchError(
            f"rank {rank} of {layout} must be rank {rank} of a torch world of {layout.world_size}, and is rank {place[0]} "
            f"of {place[1]}; processes that do not train must be in another world"
        )


def random_state() -> dict[str, Tensor]:
    """A copy of torch's generators and those of Megatron-core's tracker. Call inside ``megatron_on(device)``."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state | {_TRACKER + name: value for name, value in _tracker().get_states().items()}


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    names = [name for name in state if name.startswith(_TRACKER)]
    _tracker().set_states({name.removeprefix(_TRACKER): state[name] for name in names})


def seed_anew(seed: int, step: int) -> None:
    """A random state that follows from the seed and the step alone. Call inside ``megatron_on(device)``."""
    mixed = (seed * 1_000_003 + step) % 2**31
    torch.manual_seed(mixed)
    tensor_parallel.model_parallel_cuda_manual_seed(mixed, force_reset_rng=True)


def _tracker() -> Any:
    tracker = tensor_parallel.get_cuda_rng_tracker()
    assert tracker is not None
    return tracker
