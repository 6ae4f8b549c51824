"""The project's own layers, which Megatron-core's layer spec takes without Apex or Transformer Engine."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in fp32 (Zhang and Sennrich 2019, equation 4).

    Megatron-core's ``WrappedTorchNorm`` refuses sequence parallelism. Here the weight says itself that its gradient must
    be summed over tensor-parallel ranks when each of them holds a part of the tokens.

    Args:
        config: Megatron's; ``sequence_parallel`` and ``params_dtype`` are read.
        hidden_size: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Megatron-core sums the gradients of parameters so marked over tp when gradients are finalised.
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden: Float[Tensor, "*packed hidden"]) -> Float[Tensor, "*packed hidden"]:
        """Normalises the last axis."""
        return _RMSNorm.apply(hidden, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """Keeps only the input and one number a token; torch's composite form keeps three tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        # The squared norm as one reduction, without a tensor of squares.
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = inverse.div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        # Rounded before the weight is applied, as Hugging Face's models do.
        return (wide * inverse).to(hidden.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, inverse = ctx.saved_tensors
        grad, size = grads[0].float(), hidden.shape[-1]
        normalised = hidden.float() * inverse
        product = grad * normalised
        grad_weight = product.reshape(-1, size).sum(dim=0)
        # d/dx = inverse * (g w - normalised * mean(g w normalised))
        projection = torch.matmul(product, weight.float()).unsqueeze(-1).div_(size)
        grad_hidden = torch.mul(grad, weight.float(), out=product).addcmul_(normalised, projection, value=-1)
        return grad_hidden.mul_(inverse).to(hidden.dtype), grad_weight.to(weight.dtype), None


class SwiGLU(nn.Module):
    """silu(gate) * up (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_and_up: Float[Tensor, "*packed both"]) -> Float[Tensor, "*packed both//2"]:
        """Gate and up are the halves of the last axis."""
        return _SwiGLU.apply(gate_and_up)


class _SwiGLU(torch.autograd.Function):
    """Keeps only its input, and writes the gradient in place.

    Torch's own chain keeps silu(gate) besides and concatenates the gradient's halves.
    """

    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        grad_both = torch.empty_like(gate_and_up)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(F.silu(gate), grads[0], out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad_both


class Router(TopKRouter):
    """Megatron-core's router of experts; its own linear map to logits needs Transformer Engine to be there."""

    def gating(self, input: Float[Tensor, "*packed hidden"]) -> Float[Tensor, "*packed expert"]:
        """Hidden states to logits, in their dtype as Hugging Face's models do."""
        return F.linear(input, self.weight)
