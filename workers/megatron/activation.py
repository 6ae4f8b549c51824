"""SwiGLU that fits Megatron-core's MLP: keeps only its input, and writes the gradient in place."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """silu(gate) * up for an input ``[..., gate | up]`` (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, fused: Tensor) -> Tensor:
        """``[..., 2 n]`` -> ``[..., n]``."""
        return _SwiGLU.apply(fused)


class _SwiGLU(torch.autograd.Function):
    """Torch's own chain keeps silu(gate) besides the input and concatenates the gradient's halves."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        ctx.save_for_backward(fused)
        gate, up = fused.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (fused,) = ctx.saved_tensors
        gate, up = fused.chunk(2, dim=-1)
        grad_fused = torch.empty_like(fused)
        grad_gate, grad_up = grad_fused.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grads[0], out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad_fused
