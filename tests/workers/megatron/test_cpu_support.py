"""What Megatron-core still needs on a CPU; a failure here after an upgrade means that a redirection can go."""

import inspect

import megatron.core
import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import clip_grads, distrib_optimizer
from megatron.core.optimizer import optimizer as base_optimizer
from megatron.core.pipeline_parallel import p2p_communication, schedules
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.moe import moe_utils, token_dispatcher

from workers.megatron.cpu_support import REPLACEMENTS, megatron_on

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="redirections are off where CUDA is")

# (module, text in it that makes a redirection necessary)
REASONS = [
    (mappings, "device=torch.cuda.current_device()"),
    (p2p_communication, "torch.cuda.synchronize()"),
    (token_dispatcher, "torch.cuda.Stream()"),
    (token_dispatcher, "with torch.cuda.stream("),
    (token_dispatcher, "torch.cuda.current_stream()"),
    (moe_utils.maybe_move_tensor_to_cpu, "tensor.is_cuda:"),
    (megatron_random, "torch.cuda.manual_seed("),
    (megatron_random, "torch.cuda.get_rng_state()"),
    (megatron_random, "_get_cuda_rng_state("),
    (schedules, 'device="cuda"'),
    (clip_grads, "torch.cuda.FloatTensor"),
    (base_optimizer, "torch.cuda.FloatTensor"),
    (distrib_optimizer, "torch.cuda.BFloat16Tensor"),
]


@pytest.mark.parametrize(("module", "text"), REASONS, ids=lambda value: getattr(value, "__name__", value))
def test_each_redirection_is_still_needed(module: object, text: str) -> None:
    source = inspect.getsource(module)  # pyright: ignore[reportArgumentType]
    assert text in source, f"Megatron-core {megatron.core.__version__} no longer has {text}; see cpu_support.py"


@without_cuda
def test_redirects_inside_the_block_only() -> None:
    before = [getattr(module, name) for module, name, _ in REPLACEMENTS]
    with megatron_on(CPU), megatron_on(CPU):
        assert torch.zeros(1, device="cuda").device == CPU
        assert torch.zeros(1).cuda().device == CPU
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
        assert torch.zeros(1).type(torch.float64).dtype == torch.float64
        assert torch.empty(1, device=torch.cuda.current_device()).device == CPU
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            assert torch.cuda.current_stream() == torch.cuda.Stream()
    assert [getattr(module, name) for module, name, _ in REPLACEMENTS] == before
    assert torch.zeros(1).type() == "torch.FloatTensor"


@without_cuda
def test_undone_after_an_error() -> None:
    before = torch.cuda.current_device
    with pytest.raises(ZeroDivisionError), megatron_on(CPU):
        raise ZeroDivisionError
    assert torch.cuda.current_device is before


def test_changes_nothing_for_cuda() -> None:
    before = torch.cuda.current_device
    with megatron_on(torch.device("cuda", 0)):
        assert torch.cuda.current_device is before


@without_cuda
def test_random_tracker_forks_the_cpu_generator() -> None:
    with megatron_on(CPU):
        tracker = megatron_random.CudaRNGStatesTracker()
        torch.manual_seed(7)
        untouched = torch.rand(2)
        torch.manual_seed(7)
        tracker.add("region", 3)
        with tracker.fork("region"):
            inside = torch.rand(2)
        assert torch.equal(torch.rand(2), untouched)
        torch.manual_seed(3)
        assert torch.equal(torch.rand(2), inside)


def test_megatron_falls_back_to_torch_adamw() -> None:
    """Apex or Transformer Engine would bring another AdamW, whose state the checkpoint has not been tried with."""
    assert megatron_optimizer.USING_PYTORCH_OPTIMIZER or torch.cuda.is_available()
