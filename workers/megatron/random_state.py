"""The random state of a rank: torch's generators and those of Megatron-core's tracker, as tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

_TRACKER = "tracker."


def random_state() -> dict[str, Tensor]:
    """A copy of it. Call inside ``megatron_on(device)``."""
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
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    return tracker
