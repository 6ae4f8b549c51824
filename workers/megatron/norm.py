"""RMSNorm that fits Megatron-core's layer spec, without Apex or Transformer Engine.

Megatron-core's ``WrappedTorchNorm`` refuses sequence parallelism. Here the weight says itself that its gradient must be
summed over tensor-parallel ranks when each of them holds a part of the tokens.
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32 (Zhang and Sennrich 2019, equation 4).

    Args:
        config: Megatron's; ``sequence_parallel`` and ``params_dtype`` are read.
        hidden_size: size of the last axis, over which the mean goes.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Megatron-core sums the gradients of parameters so marked over tp when gradients are finalised.
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last axis of ``[..., hidden_size]``."""
        return _NormFunction.apply(hidden, self.weight, self.eps)


class _NormFunction(torch.autograd.Function):
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
