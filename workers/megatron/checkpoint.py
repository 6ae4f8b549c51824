"""A policy on disk: weights, optimizer, schedule and random state, restored bit for bit. Nothing in it can run code.

    policy.json                           layout, steps taken, dtype
    model-pp0-tp1.safetensors             weights of a shard, written by its first data-parallel rank
    optimizer-pp0-tp1-dp0.safetensors     AdamW's state: of every dp rank with the distributed optimizer, else of one
    random-rank3.safetensors              random state of a rank

Resuming needs the layout that wrote the checkpoint; exported Hugging Face weights fit any.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfpo_hybrid.errors import ConfigError, DataError
from workers.megatron.optimizer import PolicyOptimizer
from workers.megatron.parallel import ParallelGroups

_TRACKER = "tracker."


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyState:
    """What a checkpoint holds of a rank, as live objects.

    Args:
        parameters: weights of the local shard by name, read and written in place.
        distributed_optimizer: every dp rank holds a part of the optimizer's state.
    """

    parameters: Mapping[str, Tensor]
    optimizer: PolicyOptimizer
    groups: ParallelGroups
    distributed_optimizer: bool


def save_policy(directory: Path, state: PolicyState) -> None:
    """Writes this rank's files; the checkpoint is whole when all ranks have. Call inside ``megatron_on(device)``."""
    directory.mkdir(parents=True, exist_ok=True)
    groups = state.groups
    if groups.coordinate.dp == 0:
        save_file(_on_host(state.parameters), directory / _model_file(groups))
    if groups.coordinate.dp == 0 or state.distributed_optimizer:
        save_file(_on_host(state.optimizer.state_tensors()), directory / _optimizer_file(state))
    save_file(_on_host(_random_state()), directory / _random_file(groups))
    if groups.rank == 0:
        (directory / "policy.json").write_text(json.dumps(_description(state), indent=2), encoding="utf-8")


def load_policy(directory: Path, state: PolicyState) -> None:
    """Restores what :func:`save_policy` wrote. Call inside ``megatron_on(device)``.

    Raises:
        DataError: files are missing.
        ConfigError: the checkpoint is of another layout or dtype.
    """
    groups = state.groups
    files = ["policy.json", _model_file(groups), _optimizer_file(state), _random_file(groups)]
    missing = [name for name in files if not (directory / name).is_file()]
    if missing == files:
        raise DataError(f"{directory} holds no policy checkpoint (policy.json is missing)")
    written = json.loads((directory / "policy.json").read_text(encoding="utf-8"))
    expected = _description(state) | {"steps_taken": written["steps_taken"]}
    if written != expected:
        raise ConfigError(
            f"the checkpoint in {directory} was written with {written}, this run has {expected}; resume with the same "
            "layout and dtype, or start from its exported Hugging Face model"
        )
    if missing:
        raise DataError(f"the checkpoint in {directory} lacks {', '.join(missing)}")
    with torch.no_grad():
        for name, values in load_file(directory / _model_file(groups)).items():
            state.parameters[name].copy_(values)
    state.optimizer.load_state_tensors(load_file(directory / _optimizer_file(state)))
    state.optimizer.steps_taken = written["steps_taken"]
    _restore_random_state(load_file(directory / _random_file(groups)))


def _description(state: PolicyState) -> dict[str, Any]:
    return {
        "layout": asdict(state.groups.layout),
        "distributed_optimizer": state.distributed_optimizer,
        "dtype": str(next(iter(state.parameters.values())).dtype).removeprefix("torch."),
        "steps_taken": state.optimizer.steps_taken,
    }


def _model_file(groups: ParallelGroups) -> str:
    return f"model-pp{groups.coordinate.pp}-tp{groups.coordinate.tp}.safetensors"


def _optimizer_file(state: PolicyState) -> str:
    place = state.groups.coordinate
    return f"optimizer-pp{place.pp}-tp{place.tp}-dp{place.dp if state.distributed_optimizer else 0}.safetensors"


def _random_file(groups: ParallelGroups) -> str:
    return f"random-rank{groups.rank}.safetensors"


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Cloned: safetensors refuses tensors that are views of one buffer.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state | {_TRACKER + name: value for name, value in _tracker().get_states().items()}


def _restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    names = [name for name in state if name.startswith(_TRACKER)]
    _tracker().set_states({name.removeprefix(_TRACKER): state[name] for name in names})


def _tracker() -> Any:
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    return tracker
