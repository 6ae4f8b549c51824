"""The project's own norm, activation and attention against plain torch, values and gradients."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from resharding_world import small_shape
from torch import Tensor

from cfpo_hybrid.errors import ConfigError
from workers.megatron.attention import PackedAttention, Rotary, choose_kernel
from workers.megatron.layers import RMSNorm, SwiGLU

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    num_layers=1,
    hidden_size=32,
    num_attention_heads=4,
    use_cpu_initialization=True,
    tensor_model_parallel_size=2,
    sequence_parallel=True,
)
SHAPE = small_shape(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=100.0)


def assert_same(function: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Equal values and equal gradients for a random gradient coming in."""
    results = []
    for called in (function, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        value = called(*leaves)
        incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        results.append((value, *torch.autograd.grad(value, leaves, incoming)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_rms_norm() -> None:
    norm = RMSNorm(CONFIG, 16, eps=1e-3)
    assert cast(Any, norm.weight).sequence_parallel
    with torch.no_grad():
        norm.weight.copy_(torch.randn(16))
    hidden = torch.randn(3, 5, 16)
    assert_same(norm, lambda x: F.rms_norm(x, (16,), norm.weight, 1e-3), hidden)
    weight_gradients = []
    for called in (norm, lambda x: F.rms_norm(x, (16,), norm.weight, 1e-3)):
        weight_gradients.append(torch.autograd.grad(called(hidden).square().sum(), norm.weight)[0])
    torch.testing.assert_close(*weight_gradients, rtol=1e-5, atol=1e-4)


def test_swiglu() -> None:
    assert_same(SwiGLU(CONFIG), lambda x: F.silu(x[..., :6]) * x[..., 6:], torch.randn(4, 1, 12))


def rotated(vectors: Tensor) -> Tensor:
    """Rotary positions as Hugging Face writes them, for one sequence ``[token, head, dim]``."""
    frequencies = 1.0 / 100.0 ** (torch.arange(0, 8, 2).float() / 8)
    angles = torch.outer(torch.arange(len(vectors)).float(), frequencies).repeat(1, 2).unsqueeze(1)
    half = torch.cat([-vectors[..., 4:], vectors[..., :4]], dim=-1)
    return vectors * angles.cos() + half * angles.sin()


def separately(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Causal attention, one sequence at a time, with an explicit softmax."""
    answers = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        k, v = rotated(k).repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        scores = torch.einsum("qhd,khd->hqk", rotated(q), k) / 8**0.5
        scores = scores + torch.full(scores.shape[1:], float("-inf")).triu(1)
        answers.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v))
    return torch.cat(answers)


@pytest.mark.parametrize("lengths", [(7, 33, 20), (5, 5, 5), (1,)])
def test_packed_attention(lengths: tuple[int, ...]) -> None:
    total = sum(lengths)
    sequences = Rotary(SHAPE, torch.float32, CPU).sequences(lengths)
    attention = PackedAttention(kernel=choose_kernel("auto", CPU, torch.float32))
    assert_same(
        lambda q, k, v: attention(q, k, v, packed_seq_params=sequences),
        lambda q, k, v: separately(q, k, v, lengths),
        torch.randn(total, 4, 8),
        torch.randn(total, 2, 8),
        torch.randn(total, 2, 8),
    )


@pytest.mark.parametrize(("name", "message"), [("flash", "unknown"), ("flash_attn", "does not run on cpu")])
def test_kernels_that_cannot_be_had(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_kernel(name, CPU, torch.float32)
