"""What vLLM 0.32 needs to live in a training process: the one place that reaches into its inside.

Each helper says why it is there. They serve the start of the engine (``LLM()``), and two of them new weights.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm import ModelRegistry, _custom_ops
from vllm.model_executor.layers import utils as linear_utils
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Gives torch, numpy and python their random state back: vLLM seeds all of them, and draws from them."""
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def import_model(architecture: str) -> None:
    """Imports vLLM's model class here and now.

    vLLM would start a second Python for every rank, importing all of itself again just to look at the class (10 s of a
    core), so as not to touch CUDA; a training process touches CUDA anyway.
    """
    ModelRegistry.register_model(architecture, ModelRegistry.models[architecture].load_model_cls())


@contextmanager
def live_weights() -> Iterator[None]:
    """Keeps Linear weights as parameters on a CPU.

    vLLM packs them for oneDNN (or SGL's kernels) right after loading and leaves empty parameters behind: new weights
    would raise, or silently reach nothing. Without packing they stay live, as they are on a GPU.
    """
    with (
        _replaced(_custom_ops, "_supports_onednn", False),
        _replaced(linear_utils, "check_cpu_sgl_kernel", lambda *_: False),
    ):
        yield


class PlainExperts:
    """Experts as new weights are written, where vLLM's kernel on a CPU reads a packed form; on a GPU there are none.

    That kernel has no plain form, and vLLM's own reload leaves the packing out.

    Args:
        model: vLLM's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._packed: dict[str, tuple[Tensor, str]] = {}
        for name, layer in model.named_modules():
            isa = _packed_for(layer)
            if isa:
                parameters = dict(layer.named_parameters(recurse=False))
                self._packed |= {f"{name}.{key}": (parameters[key].data, isa) for key in ("w13_weight", "w2_weight")}
        self.tensors = {name: torch.zeros_like(packed) for name, (packed, _) in self._packed.items()}

    def take_over(self) -> None:
        """After vLLM's own reload, which has put the plain form into the packed form's place."""
        for name, (packed, _) in self._packed.items():
            self.tensors[name].copy_(packed)

    def pack(self) -> None:
        """Makes the plain form take effect."""
        for name, (packed, isa) in self._packed.items():
            packed.copy_(_custom_ops.cpu_prepack_moe_weight(self.tensors[name], isa))


def _packed_for(layer: nn.Module) -> str | None:
    """The instruction set that a layer's experts are packed for; None for other layers and devices."""
    if not isinstance(layer, RoutedExperts) or not isinstance(layer.quant_method, UnquantizedFusedMoEMethod):
        return None
    kernel = layer.quant_method.moe_kernel
    experts = kernel.fused_experts if kernel else None
    return experts.isa if isinstance(experts, CPUUnquantizedExperts) else None


@contextmanager
def own_shared_memory(job: str) -> Iterator[None]:
    """Names the shared memory of tensor-parallel ranks after the job, and unlinks it once all ranks have joined.

    Every external launcher on a machine would use the same name, so two jobs collide, and what a killed one leaves
    stops the next. A mapping outlives its name, so unlinking at once leaves nothing to clean up, even after a kill.

    Args:
        job: unique to the job, the same on its ranks; letters, digits and ``-``.
    """
    original = ExecutorWithExternalLauncher._distributed_args

    def named(executor: ExecutorWithExternalLauncher) -> tuple[str, int, int]:
        _, rank, local_rank = original(executor)
        return f"env://:{job}", rank, local_rank  # vLLM takes what follows the last colon for the name

    try:
        with _replaced(ExecutorWithExternalLauncher, "_distributed_args", named):
            yield
    finally:
        for file in SHARED_MEMORY.glob(f"*{job}*"):
            file.unlink(missing_ok=True)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
