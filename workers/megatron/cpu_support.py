"""Lets Megatron-core 0.16 run where no CUDA device exists; does nothing where one does.

Megatron-core names CUDA in places that a CPU run reaches. All of them are redirected here and nowhere else, only while
a ``with megatron_on(device):`` block is open, so that other engines in the process see an untouched torch. What is
redirected, and who needs it:

    torch.cuda.current_device     buffers of tensor- and pipeline-parallel communication pass the answer as ``device=``
    torch.cuda.synchronize        called after every pipeline send and receive
    torch.cuda.Stream, .stream,   the experts' token dispatcher copies counts to the host on a stream of its own
    torch.cuda.current_stream
    maybe_move_tensor_to_cpu      the same dispatcher turns counts into numbers only where it copies them from a device
    torch.cuda.manual_seed,       the random-number tracker, which keeps one generator state for tensor-parallel regions
    torch.cuda.get_rng_state,     (its own getter and setter reach into ``torch.cuda.default_generators``)
    _get/_set_cuda_rng_state
    device="cuda"                 written in factory calls of the optimizer, gradient clipping and the schedules
    Tensor.cuda()                 set-up of tied embeddings over pipeline stages
    Tensor.type()                 the optimizer compares it with "torch.cuda.FloatTensor" and its like

``tests/workers/megatron/test_cpu_support.py`` says when a newer Megatron-core no longer needs one of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.moe import token_dispatcher
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def megatron_on(device: torch.device) -> AbstractContextManager[None]:
    """A block in which Megatron-core may be called; blocks may nest.

    Args:
        device: where the model lives. For CUDA the block changes nothing.
    """
    return nullcontext() if device.type == "cuda" else _on_cpu()


@contextmanager
def _on_cpu() -> Iterator[None]:
    replaced = [(module, name, getattr(module, name)) for module, name, _ in REPLACEMENTS]
    for module, name, replacement in REPLACEMENTS:
        setattr(module, name, replacement)
    try:
        with _CudaCallsOnCpu():
            yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)


class _CudaCallsOnCpu(TorchFunctionMode):
    """Redirects what is written into calls of torch functions: ``device="cuda"``, ``.cuda()`` and ``.type()``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.type and len(args) == 1 and not kwargs:
            return f"torch.cuda.{func(*args).rpartition('.')[2]}"
        if kwargs and kwargs.get("device") == "cuda":
            return func(*args, **{**kwargs, "device": CPU})
        return func(*args, **(kwargs or {}))


class _Stream:
    """Work on a CPU is done when the call returns, so every stream is the same one and nothing has to wait."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0

    def record_event(self) -> "_Stream":
        return self

    def synchronize(self) -> None:
        pass


def _on_host(counts: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return counts.numpy() if as_numpy and isinstance(counts, Tensor) else counts


def _get_rng_state(*_: Any, **__: Any) -> Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


REPLACEMENTS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.cuda, "current_device", lambda: CPU),
    (torch.cuda, "synchronize", lambda device=None: None),  # a CPU has nothing to wait for
    (torch.cuda, "Stream", _Stream),
    (torch.cuda, "stream", lambda stream: nullcontext()),
    (torch.cuda, "current_stream", _Stream),
    (token_dispatcher, "maybe_move_tensor_to_cpu", _on_host),
    (torch.cuda, "manual_seed", torch.manual_seed),
    (torch.cuda, "get_rng_state", _get_rng_state),
    (megatron_random, "_get_cuda_rng_state", _get_rng_state),
    (megatron_random, "_set_cuda_rng_state", _set_rng_state),
)
"""(module, attribute, what stands in its place on a CPU)."""
